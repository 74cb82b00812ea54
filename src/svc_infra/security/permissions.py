"""Roles, permissions and the dependencies that require them: the documented import path."""

from svc_infra.security.access import PERMISSION_REGISTRY, register_role
from svc_infra.security.access.http import (
    RequireABAC,
    RequireAnyPermission,
    RequireAnyScope,
    RequireFreshAuth,
    RequirePermission,
    RequireRoles,
    RequireScopes,
    RequireService,
    RequireUser,
    owns_resource,
    public,
)
from svc_infra.security.http import Identity, OptionalIdentity

__all__ = [
    "PERMISSION_REGISTRY", "Identity", "OptionalIdentity", "RequireABAC", "RequireAnyPermission", "RequireAnyScope",
    "RequireFreshAuth", "RequirePermission", "RequireRoles", "RequireScopes", "RequireService", "RequireUser",
    "owns_resource", "public", "register_role",
]  # fmt: skip
