"""What each role may do. A permission reads `<resource>.<action>`, with more dots for narrower resources.

The built-in roles stand here, and nowhere else; an app adds its own with `add_auth_users(app, roles={...})`. The one
permission that no built-in role has is `tenant.any`: it lets its holder act in every tenant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from svc_infra.errors import ConfigurationError

PERMISSION_REGISTRY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "admin": frozenset(
            {
                "admin.impersonate",
                "billing.read",
                "billing.write",
                "security.session.list",
                "security.session.revoke",
                "user.read",
                "user.write",
            }
        ),
        "auditor": frozenset({"audit.read", "billing.read", "user.read"}),
        "support": frozenset({"billing.read", "user.read"}),
    }
)

_PERMISSION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


class Policy:
    """The roles of one app.

    Args:
        roles: The app's own roles and their permissions; naming a built-in role adds to it.

    Raises:
        ConfigurationError: A permission is not written as `<resource>.<action>`.
    """

    def __init__(self, roles: Mapping[str, Collection[str]] | None = None) -> None:
        self._permissions = dict(PERMISSION_REGISTRY)
        for role, permissions in (roles or {}).items():
            for permission in permissions:
                check_permission_name(permission)
            self._permissions[role] = self._permissions.get(role, frozenset()) | frozenset(permissions)

    def permissions(self, roles: Collection[str]) -> frozenset[str]:
        """Everything that these roles permit together; an unknown role permits nothing."""
        return frozenset().union(*(self._permissions.get(role, frozenset()) for role in roles))


def check_permission_name(permission: str) -> None:
    """Refuse a permission that no role could have.

    Raises:
        ConfigurationError: It is not written as `<resource>.<action>`.
    """
    if not _PERMISSION.fullmatch(permission):
        raise ConfigurationError(f"{permission!r} is no permission: write it as resource.action, such as user.read.")
