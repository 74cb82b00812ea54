"""Invitations: a mailed link makes the owner of the address a member, once."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from secrets import token_urlsafe
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import BadRequestError, ConflictError, ForbiddenError, NotFoundError
from svc_infra.security.accounts.email import normalized_email
from svc_infra.security.accounts.mailing import MailQueue
from svc_infra.security.audit import record
from svc_infra.security.models import HasAccount, Membership, Organization
from svc_infra.security.organizations.members import Members, end_invitations
from svc_infra.security.organizations.models import Invitation
from svc_infra.security.organizations.organizations import Organizations
from svc_infra.types import Clock, SystemClock, new_id

DEFAULT_TTL_SECONDS = 72 * 3600.0
MAX_OPEN = 100
"""Invitations of one organization that can be accepted."""
MAX_TOKEN_CHARACTERS = 128

_TOKEN_BYTES = 32
_TEMPLATE = "invitation"
_PAGE = "/accept-invitation"


class Invitations:
    """The invitations of one app's organizations. Only hashes of their links are stored.

    Args:
        members: Decides who may give which role.
        mail: How they are sent.
        ttl_seconds: How long one can be accepted.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        members: Members,
        mail: MailQueue,
        *,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._members = members
        self._mail = mail
        self._ttl = timedelta(seconds=ttl_seconds)
        self._clock = clock or SystemClock()

    async def invite(
        self, session: AsyncSession, organization_id: UUID, email: str, role: str, *, inviter_id: UUID
    ) -> Invitation:
        """Invite an address in this unit of work; an invitation that it has already ends.

        Raises:
            ValidationError: The address or the role is not acceptable.
            NotFoundError: The inviter is no member.
            ForbiddenError: The role permits more than the inviter's.
            ConflictError: Too many invitations are open.
        """
        address = normalized_email(email)
        organization = await session.get(Organization, organization_id, with_for_update=True)
        own_role = await Organizations(session).role(organization_id, inviter_id)
        if organization is None or own_role is None:
            raise NotFoundError("Organization", organization_id)
        self._members.check_gives(own_role, role)
        now, token = self._clock.now(), token_urlsafe(_TOKEN_BYTES)
        await end_invitations(session, organization_id, Invitation.email == address, now=now)
        open_ones = and_(Invitation.organization_id == organization_id, self._is_open())
        if (await session.scalar(select(func.count()).select_from(Invitation).where(open_ones)) or 0) >= MAX_OPEN:
            raise ConflictError(f"{MAX_OPEN} invitations are open already: revoke one of them.")
        invitation = Invitation(
            id=new_id(),
            organization_id=organization_id,
            email=address,
            role=role,
            token_hash=_hashed(token),
            invited_by=inviter_id,
            created_at=now,
            expires_at=now + self._ttl,
        )
        session.add(invitation)
        await session.flush()
        values = {"link": f"{_PAGE}#{token}", "organization": organization.name}
        await self._mail.send(session, _TEMPLATE, address, values)
        await self._record(session, "invitation.created", invitation)
        return invitation

    async def open(self, session: AsyncSession, organization_id: UUID) -> list[Invitation]:
        """Those that can still be accepted, oldest first."""
        wanted = select(Invitation).where(Invitation.organization_id == organization_id, self._is_open())
        return list(await session.scalars(wanted.order_by(Invitation.id).limit(MAX_OPEN)))

    async def revoke(self, session: AsyncSession, organization_id: UUID, invitation_id: UUID) -> None:
        """End an invitation in this unit of work.

        Raises:
            NotFoundError: There is no such open invitation of this organization.
        """
        if not await end_invitations(session, organization_id, Invitation.id == invitation_id, now=self._clock.now()):
            raise NotFoundError("Invitation", invitation_id)

    async def accept(self, session: AsyncSession, token: str, user: HasAccount) -> Membership:
        """Make a user a member by means of a link, in this unit of work; of many at once, one succeeds.

        Raises:
            ForbiddenError: The user has not proven the own address yet.
            BadRequestError: The link is unknown, used, ended, or was sent to another address.
            ConflictError: The user is a member already; the link can still be used.
        """
        if not user.is_verified:
            raise ForbiddenError("Confirm your e-mail address first; the invitation waits.")
        mine = (Invitation.token_hash == _hashed(token), Invitation.email == user.email, self._is_open())
        claim = update(Invitation).where(*mine).values(accepted_at=self._clock.now()).returning(Invitation)
        invitation = await session.scalar(claim, execution_options={"synchronize_session": False})
        if invitation is None:
            raise BadRequestError("This invitation is not valid any more, or it is for another address.")
        membership = await Organizations(session).add_member(invitation.organization_id, user.id, invitation.role)
        await self._record(session, "invitation.accepted", invitation)
        return membership

    def _is_open(self) -> ColumnElement[bool]:
        return and_(
            Invitation.accepted_at.is_(None),
            Invitation.revoked_at.is_(None),
            Invitation.expires_at > self._clock.now(),
        )

    async def _record(self, session: AsyncSession, action: str, invitation: Invitation) -> None:
        await record(
            session,
            action,
            target=f"invitation:{invitation.id}",
            tenant_id=str(invitation.organization_id),
            after={"email": invitation.email, "role": invitation.role},
        )


def _hashed(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
