"""Roles, permissions and the dependencies that require them: the documented import path."""

from svc_infra.security._policy import PERMISSION_REGISTRY
from svc_infra.security.http import RequirePermission, RequireRoles

__all__ = ["PERMISSION_REGISTRY", "RequirePermission", "RequireRoles"]
