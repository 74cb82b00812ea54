"""The members of an organization: who gives which role to whom, and that an owner stays."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ForbiddenError, NotFoundError, ValidationError
from svc_infra.security.access import Policy
from svc_infra.security.audit import record
from svc_infra.security.models import HasAccount, Membership, OrganizationRole, User
from svc_infra.security.organizations.models import Invitation, Team, TeamMember
from svc_infra.security.ownership import check_owner_stays, lock_organization
from svc_infra.types import Clock, SystemClock

MAX_LISTED = 1000
"""Members given in one list."""


class Member(NamedTuple):
    """Somebody who belongs to an organization."""

    user_id: UUID
    email: str
    role: str


async def end_invitations(
    session: AsyncSession, organization_id: UUID, wanted: ColumnElement[bool], *, now: datetime
) -> int:
    """End invitations of an organization that can still be accepted, in this unit of work; returns how many."""
    open_ones = (
        Invitation.organization_id == organization_id,
        Invitation.accepted_at.is_(None),
        Invitation.revoked_at.is_(None),
        Invitation.expires_at > now,
    )
    ending = update(Invitation).where(*open_ones, wanted).values(revoked_at=now)
    ending = ending.execution_options(synchronize_session=False)
    ended = (await session.execute(ending.returning(Invitation.id, Invitation.email, Invitation.role))).all()
    for invitation_id, email, role in ended:
        after = {"email": email, "role": role}
        target = f"invitation:{invitation_id}"
        await record(session, "invitation.revoked", target=target, tenant_id=str(organization_id), after=after)
    return len(ended)


class Members:
    """The members of one app's organizations.

    Nobody gives a role that permits more than the own one does, and nobody changes a member who may do more. Every
    change locks the organization, so of two owners who leave at once one stays.

    Args:
        policy: What the roles permit.
        user_model: The app's users.
        clock: Where the time comes from.
    """

    def __init__(self, policy: Policy, *, user_model: type[HasAccount] = User, clock: Clock | None = None) -> None:
        self._policy = policy
        self._user = user_model
        self._clock = clock or SystemClock()

    async def list(
        self, session: AsyncSession, organization_id: UUID, *, after: UUID | None = None, limit: int = MAX_LISTED
    ) -> list[Member]:
        """The members, oldest membership first.

        Args:
            session: The unit of work.
            organization_id: Whose.
            after: Only those who came after this member, the last one of the page before.
            limit: How many at most.

        Raises:
            NotFoundError: That one is no member any more.
        """
        wanted = [Membership.organization_id == organization_id]
        if after is not None:
            last = select(Membership.id).where(*wanted, Membership.user_id == after)
            if (last_id := await session.scalar(last)) is None:
                raise NotFoundError("Member", after)
            wanted.append(Membership.id > last_id)
        rows = await session.execute(
            select(Membership.user_id, self._user.email, Membership.role)
            .join(self._user, self._user.id == Membership.user_id)
            .where(*wanted)
            .order_by(Membership.id)
            .limit(limit)
        )
        return [Member(*row) for row in rows]

    async def set_role(
        self, session: AsyncSession, organization_id: UUID, user_id: UUID, role: str, *, actor_id: UUID
    ) -> None:
        """Give a member another role in this unit of work.

        Raises:
            ValidationError: There is no such role.
            NotFoundError: One of the two is no member.
            ForbiddenError: The actor may do less than the member, or than the role permits.
            ConflictError: It is the last owner.
        """
        actor, member = await self._locked(session, organization_id, actor_id, user_id)
        self.check_gives(actor.role, role)
        self._check_not_above(actor.role, member.role)
        if role == member.role:
            return
        await check_owner_stays(session, self._user, member)
        before, member.role = member.role, role
        await self._end_invitations(session, member)
        await self._record(session, "membership.role_changed", member, before={"role": before}, after={"role": role})

    async def remove(self, session: AsyncSession, organization_id: UUID, user_id: UUID, *, actor_id: UUID) -> None:
        """End a membership in this unit of work: an actor's own, or that of who may do no more.

        Raises:
            NotFoundError: One of the two is no member.
            ForbiddenError: The actor may do less than the member.
            ConflictError: It is the last owner.
        """
        actor, member = await self._locked(session, organization_id, actor_id, user_id)
        self._check_not_above(actor.role, member.role)
        await check_owner_stays(session, self._user, member)
        teams = select(Team.id).where(Team.organization_id == organization_id)
        await session.execute(delete(TeamMember).where(TeamMember.user_id == user_id, TeamMember.team_id.in_(teams)))
        await self._end_invitations(session, member)
        await session.delete(member)
        await self._record(session, "membership.removed", member, before={"role": member.role})

    def check_gives(self, own_role: str, role: str) -> None:
        """Refuse a role that permits more than the own one.

        Raises:
            ValidationError: There is no such role.
            ForbiddenError: It permits more.
        """
        roles = self._policy.organization_roles
        if role not in roles:
            raise ValidationError(f"There is no role {role!r}: use {', '.join(sorted(roles))}.")
        self._check_not_above(own_role, role)

    def _check_not_above(self, own_role: str, role: str) -> None:
        more = self._policy.organization_permissions(role) - self._policy.organization_permissions(own_role)
        if own_role != role and (more or role == OrganizationRole.OWNER):
            raise ForbiddenError(f"The role {role} permits more than yours.")

    async def _locked(
        self, session: AsyncSession, organization_id: UUID, *user_ids: UUID
    ) -> tuple[Membership, Membership]:
        """The memberships of the actor and the member, once no other change of members is under way."""
        await lock_organization(session, organization_id)
        wanted = select(Membership).where(Membership.organization_id == organization_id)
        rows = await session.scalars(
            wanted.where(Membership.user_id.in_(user_ids)), execution_options={"populate_existing": True}
        )
        found = {row.user_id: row for row in rows}
        actor_id, user_id = user_ids
        if actor_id not in found:
            raise NotFoundError("Organization", organization_id)
        if user_id not in found:
            raise NotFoundError("Member", user_id)
        return found[actor_id], found[user_id]

    async def _end_invitations(self, session: AsyncSession, member: Membership) -> None:
        """What somebody has offered ends with the right to offer it."""
        theirs = Invitation.invited_by == member.user_id
        await end_invitations(session, member.organization_id, theirs, now=self._clock.now())

    async def _record(self, session: AsyncSession, action: str, member: Membership, **changes: dict[str, str]) -> None:
        tenant_id = str(member.organization_id)
        before, after = changes.get("before"), changes.get("after")
        target = f"user:{member.user_id}"
        await record(session, action, target=target, tenant_id=tenant_id, before=before, after=after)
