"""What each role may do. A permission reads `<resource>.<action>`, with more dots for narrower resources.

The built-in roles stand here, and nowhere else; an app adds its own with `register_role`. An account's roles are good
everywhere, and a member's role in an organization there only: the two never mix, even where they have the same name.

The one permission that no built-in role has is `tenant.any`: it lets its holder act in every tenant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from svc_infra.errors import ConfigurationError
from svc_infra.wiring import Phase, Wiring, wiring_of

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
"""What the roles of accounts permit."""

_READ = frozenset({"organization.member.read", "organization.read"})
_MANAGE = _READ | {
    "organization.invitation.write",
    "organization.key.write",
    "organization.member.write",
    "organization.team.write",
    "organization.write",
    "webhook.read",
    "webhook.write",
}
ORGANIZATION_PERMISSIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"admin": _MANAGE, "member": _READ, "owner": _MANAGE | {"organization.delete"}}
)
"""What the roles of an organization's members permit in it."""

_PERMISSION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class Policy:
    """The roles of one app.

    Args:
        roles: The app's own roles and their permissions; naming a built-in role adds to it.

    Raises:
        ConfigurationError: A role or a permission is misspelled.
    """

    def __init__(self, roles: Mapping[str, Collection[str]] | None = None) -> None:
        self._permissions = dict(PERMISSION_REGISTRY)
        self._in_organizations = dict(ORGANIZATION_PERMISSIONS)
        for role, permissions in (roles or {}).items():
            self.add(role, permissions)

    def add(self, role: str, permissions: Collection[str], *, in_organizations: bool = False) -> None:
        """Add permissions to a role, which need not exist yet.

        Raises:
            ConfigurationError: The role or a permission is misspelled.
        """
        if not _ROLE.fullmatch(role):
            raise ConfigurationError(f"{role!r} names no role: use up to 32 lower-case letters, digits, `_` and `-`.")
        if isinstance(permissions, str):
            raise ConfigurationError(f"The permissions of {role} are a text: give a list.")
        for permission in permissions:
            check_permission_name(permission)
        roles = self._in_organizations if in_organizations else self._permissions
        roles[role] = roles.get(role, frozenset()) | frozenset(permissions)
        if in_organizations:  # so that nobody in an organization is above its owner
            self._in_organizations["owner"] |= roles[role]

    def permissions(self, roles: Collection[str]) -> frozenset[str]:
        """Everything that these roles of an account permit together; an unknown role permits nothing."""
        return frozenset().union(*(self._permissions.get(role, frozenset()) for role in roles))

    def organization_permissions(self, role: str | None) -> frozenset[str]:
        """What a role in an organization permits there; an unknown one, and none, permit nothing."""
        return self._in_organizations.get(role or "", frozenset())

    @property
    def roles(self) -> Mapping[str, frozenset[str]]:
        """The roles that an account can have, and what each permits."""
        return MappingProxyType(self._permissions)

    @property
    def organization_roles(self) -> frozenset[str]:
        """The roles that a member can have."""
        return frozenset(self._in_organizations)


def register_role(app: Any, role: str, permissions: Collection[str], *, in_organizations: bool = False) -> None:
    """Give an app a role, or a role more permissions, before it starts.

    Args:
        app: The app; no other app is affected.
        role: Its name; a built-in one is added to.
        permissions: What it permits, each `<resource>.<action>`.
        in_organizations: Whether it is the role of an organization's member, there, and not an account's everywhere.

    Raises:
        ConfigurationError: The role or a permission is misspelled, or the app has started.
    """
    wiring = wiring_of(app)
    if wiring.phase not in (Phase.NEW, Phase.STOPPED):
        raise ConfigurationError(f"The role {role} was registered after the app started: register it before.")
    policy_of(wiring).add(role, permissions, in_organizations=in_organizations)


def policy_of(wiring: Wiring) -> Policy:
    """The roles of an app, made on first use."""
    if not wiring.has(Policy):
        wiring.provide(Policy, Policy())
    return wiring.get(Policy)


def check_permission_name(permission: str) -> None:
    """Refuse a permission that no role could have.

    Raises:
        ConfigurationError: It is not written as `<resource>.<action>`.
    """
    if not _PERMISSION.fullmatch(permission):
        raise ConfigurationError(f"{permission!r} is no permission: write it as resource.action, such as user.read.")
