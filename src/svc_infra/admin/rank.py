"""Who may do what to whom: nobody raises himself, and nobody touches who may do more.

What somebody may do is what their roles permit in this app. Two people of whom each may do something that the other may
not are not above each other.
"""

from __future__ import annotations

from collections.abc import Collection

from svc_infra.errors import ForbiddenError, ValidationError
from svc_infra.security.access import Policy
from svc_infra.security.principal import Principal

ADMIN_ROLE = "admin"
IMPERSONATE = "admin.impersonate"


def may_impersonate(actor: Principal) -> bool:
    """Whether somebody may act as other users at all."""
    return ADMIN_ROLE in actor.roles and actor.may(IMPERSONATE)


def is_below(policy: Policy, roles: Collection[str], actor: Principal) -> bool:
    """Whether these roles permit less than the actor's, nothing that those do not, and no acting as other users."""
    permitted = policy.permissions(roles)
    return permitted < actor.permissions and IMPERSONATE not in permitted


def check_not_above(policy: Policy, roles: Collection[str], actor: Principal) -> None:
    """Refuse to touch who may do all that the actor may do, and more.

    Raises:
        ForbiddenError: These roles permit that.
    """
    if policy.permissions(roles) > actor.permissions:
        raise ForbiddenError("This user may do more than you: only somebody who may do as much can do this.")


def check_gives(policy: Policy, role: str, actor: Principal) -> None:
    """Refuse to give or take a role that permits anything that the actor may not do.

    Raises:
        ValidationError: There is no such role.
        ForbiddenError: It permits more.
    """
    if role not in policy.roles:
        raise ValidationError(f"There is no role {role!r}: use {', '.join(sorted(policy.roles))}.")
    if beyond := policy.permissions([role]) - actor.permissions:
        raise ForbiddenError(f"The role {role} permits what you may not do yourself: {', '.join(sorted(beyond))}.")


def check_another(user_id: object, actor: Principal) -> None:
    """Refuse what nobody does to their own account.

    Raises:
        ForbiddenError: It is the actor's.
    """
    if str(user_id) == str(actor.id):
        raise ForbiddenError("Nobody does this to their own account: ask another admin.")
