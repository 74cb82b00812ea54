"""Authorisation: what each route requires of its caller, and that each route says so.

- `svc_infra.route_policy`, below all rooms: how a dependency or an endpoint says which policy it is
- `policy`: the roles of an app and what they permit, `register_role`
- `http`: `RequirePermission` and its relatives, `public()`, and the policies of an app's routes
- `add`: `add_strict_routes`
"""

from svc_infra.route_policy import declared_by, declares
from svc_infra.security.access.policy import (
    ORGANIZATION_PERMISSIONS,
    PERMISSION_REGISTRY,
    Policy,
    check_permission_name,
    policy_of,
    register_role,
)

__all__ = [
    "ORGANIZATION_PERMISSIONS", "PERMISSION_REGISTRY", "Policy", "check_permission_name", "declared_by", "declares",
    "policy_of", "register_role",
]  # fmt: skip
