"""An organization has an owner at all times: whoever is the only one cannot leave it, step down, or go.

An owner whose account is disabled can do nothing for it, and does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from svc_infra.errors import ConflictError
from svc_infra.security.models import HasAccount, Membership, Organization, OrganizationRole

MAX_NAMED = 100
"""Organizations that a refusal names."""


async def lock_organization(session: AsyncSession, organization_id: UUID) -> None:
    """Wait in this unit of work until no other one changes who belongs to an organization."""
    await session.execute(select(Organization.id).where(Organization.id == organization_id).with_for_update())


async def check_owner_stays(session: AsyncSession, user_model: type[HasAccount], member: Membership) -> None:
    """Refuse that the only owner stops being one; the organization is locked.

    Raises:
        ConflictError: It is the only one.
    """
    if member.role != OrganizationRole.OWNER:
        return
    if await _owned_alone(session, user_model, member.user_id, member.organization_id):
        raise ConflictError("This is the last owner who can log in: make another member an owner first.")


async def check_account_may_go(
    session: AsyncSession, user_model: type[HasAccount], user_id: UUID
) -> Mapping[UUID, str]:
    """Refuse that an account goes which is the only owner of an organization, in this unit of work.

    The account's organizations are locked, and then the account, so that of two owners who go at once one stays, and
    that nobody makes an account an owner while it goes. Organizations come before accounts, as everywhere.

    Returns:
        The roles that it has, by the organization.

    Raises:
        ConflictError: It is; the problem's `organizations` says of which. Or it was made a member at this moment.
    """
    own = select(Membership.organization_id, Membership.role).where(Membership.user_id == user_id)
    mine = {row.organization_id for row in await session.execute(own)}
    locked = select(Organization.id).where(Organization.id.in_(mine)).order_by(Organization.id).with_for_update()
    await session.execute(locked)
    await session.execute(select(user_model.id).where(user_model.id == user_id).with_for_update())
    roles = {row.organization_id: row.role for row in await session.execute(own)}
    if not mine.issuperset(roles):
        raise ConflictError("This account was made a member of an organization at this moment: try again.")
    if alone := await _owned_alone(session, user_model, user_id):
        refusal = ConflictError(
            "This account is the only owner of organizations: make another member an owner, or delete them first."
        )
        refusal.members["organizations"] = alone
        raise refusal
    return roles


async def _owned_alone(
    session: AsyncSession, user_model: type[HasAccount], user_id: UUID, organization_id: UUID | None = None
) -> list[dict[str, str]]:
    """The organizations, or whether it is this one, that nobody owns beside this user who can log in."""
    other = aliased(Membership)
    others = (
        select(other.id)
        .join(user_model, user_model.id == other.user_id)
        .where(
            other.organization_id == Membership.organization_id,
            other.role == OrganizationRole.OWNER,
            other.user_id != user_id,
            user_model.is_active,
        )
    )
    alone = (
        select(Organization.id, Organization.name)
        .join(Membership, Membership.organization_id == Organization.id)
        .where(Membership.user_id == user_id, Membership.role == OrganizationRole.OWNER, ~others.exists())
        .order_by(Membership.id)
        .limit(MAX_NAMED)
    )
    if organization_id is not None:
        alone = alone.where(Organization.id == organization_id)
    return [{"id": str(row.id), "name": row.name} for row in await session.execute(alone)]
