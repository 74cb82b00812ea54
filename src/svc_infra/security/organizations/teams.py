"""Teams: members of an organization by a name."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConflictError, NotFoundError, ValidationError
from svc_infra.security.audit import record
from svc_infra.security.models import Membership
from svc_infra.security.organizations.models import Team, TeamMember
from svc_infra.types import new_id

MAX_TEAMS = 100
"""Teams of one organization."""
MAX_NAME_CHARACTERS = 100
MAX_LISTED = 1000
"""Members given in one list."""


class Teams:
    """The teams of one organization, in one unit of work.

    Whether the caller may do what is asked is decided before.

    Args:
        session: The unit of work.
        organization_id: Whose teams; those of others do not exist here.
    """

    def __init__(self, session: AsyncSession, organization_id: UUID) -> None:
        self._session = session
        self._organization_id = organization_id

    async def create(self, name: str) -> Team:
        """Make a team.

        Raises:
            ValidationError: The name is not acceptable.
            ConflictError: There is one of that name, or there are too many.
        """
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise ValidationError(f"A name has 1 to {MAX_NAME_CHARACTERS} printable characters.")
        mine = select(func.count()).select_from(Team).where(Team.organization_id == self._organization_id)
        if (await self._session.scalar(mine) or 0) >= MAX_TEAMS:
            raise ConflictError(f"There are {MAX_TEAMS} teams already.")
        team = Team(id=new_id(), organization_id=self._organization_id, name=name)
        try:
            async with self._session.begin_nested():
                self._session.add(team)
        except IntegrityError:
            raise ConflictError("There is a team of this name already.") from None
        await self._record("team.created", team.id, {"name": name})
        return team

    async def all(self) -> list[Team]:
        """The teams, oldest first."""
        mine = select(Team).where(Team.organization_id == self._organization_id)
        return list(await self._session.scalars(mine.order_by(Team.id).limit(MAX_TEAMS)))

    async def delete(self, team_id: UUID) -> None:
        """End a team; its members stay in the organization.

        Raises:
            NotFoundError: There is no such team.
        """
        await self._session.delete(await self._existing(team_id))
        await self._record("team.deleted", team_id, {})

    async def members(self, team_id: UUID) -> list[UUID]:
        """Who belongs to a team, the first `MAX_LISTED` of them.

        Raises:
            NotFoundError: There is no such team.
        """
        await self._existing(team_id)
        wanted = select(TeamMember.user_id).where(TeamMember.team_id == team_id).order_by(TeamMember.id)
        return list(await self._session.scalars(wanted.limit(MAX_LISTED)))

    async def add(self, team_id: UUID, user_id: UUID) -> None:
        """Put a member of the organization into a team; one who is there already stays.

        Raises:
            NotFoundError: There is no such team or member.
        """
        await self._existing(team_id)
        mine = (Membership.organization_id == self._organization_id, Membership.user_id == user_id)
        if await self._session.scalar(select(Membership.id).where(*mine).with_for_update()) is None:
            raise NotFoundError("Member", user_id)
        there = (TeamMember.team_id == team_id, TeamMember.user_id == user_id)
        if await self._session.scalar(select(TeamMember.id).where(*there)) is not None:
            return
        self._session.add(TeamMember(id=new_id(), team_id=team_id, user_id=user_id))
        await self._session.flush()
        await self._record("team.member_added", team_id, {"user_id": str(user_id)})

    async def remove(self, team_id: UUID, user_id: UUID) -> None:
        """Take somebody out of a team.

        Raises:
            NotFoundError: There is no such team, or nobody like that in it.
        """
        await self._existing(team_id)
        there = (TeamMember.team_id == team_id, TeamMember.user_id == user_id)
        if await self._session.scalar(delete(TeamMember).where(*there).returning(TeamMember.id)) is None:
            raise NotFoundError("Member", user_id)
        await self._record("team.member_removed", team_id, {"user_id": str(user_id)})

    async def _existing(self, team_id: UUID) -> Team:
        team = await self._session.get(Team, team_id)
        if team is None or team.organization_id != self._organization_id:
            raise NotFoundError("Team", team_id)
        return team

    async def _record(self, action: str, team_id: UUID, after: dict[str, str]) -> None:
        tenant_id = str(self._organization_id)
        await record(self._session, action, target=f"team:{team_id}", tenant_id=tenant_id, after=after)
