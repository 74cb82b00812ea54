"""Who needs a second factor, and the second step that a login takes then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import sha256
from secrets import token_urlsafe
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import MfaSettings
from svc_infra.errors import ConfigurationError
from svc_infra.security.audit import AuditTrail
from svc_infra.security.mfa.challenges import ChallengeKind, Challenges, hashed
from svc_infra.security.mfa.models import Factor
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.models import HasAccount, Membership
from svc_infra.security.sessions import Device, SecondStep

TOKEN_BYTES = 32

Requirement = Callable[[AsyncSession, UUID, Collection[str]], Awaitable[bool]]
"""Whether the user of this id, with these roles of the account, needs a second factor; it may read, not write.

Each request of a login without one asks it, so it must be quick. Where logins are remembered (`AUTH_TOKEN_CACHE`), what
it reads elsewhere is noticed after `AUTH_TOKEN_CACHE_SECONDS`.
"""


def required_for_members(*organization_ids: UUID) -> Requirement:
    """A requirement for everybody who belongs to one of these organizations.

    Raises:
        ConfigurationError: There is none.
    """
    if not organization_ids:
        raise ConfigurationError("No organization requires a second factor: name one.")

    async def is_member(session: AsyncSession, user_id: UUID, roles: Collection[str]) -> bool:
        mine = (Membership.user_id == user_id, Membership.organization_id.in_(organization_ids))
        return await session.scalar(select(Membership.id).where(*mine).limit(1)) is not None

    return is_member


def required_by(settings: MfaSettings, own: Requirement | None) -> Requirement:
    """What `MFA_REQUIRED` asks for, and what the app does beside that.

    Args:
        settings: `required` and `roles`.
        own: The app's own requirement.
    """

    async def is_required(session: AsyncSession, user_id: UUID, roles: Collection[str]) -> bool:
        if settings.required == "all":
            return True
        if settings.required == "roles" and set(settings.roles) & set(roles):
            return True
        return own is not None and await own(session, user_id, roles)

    return is_required


class Gate:
    """The `SecondFactors` of one app.

    Args:
        user_model: The app's users.
        challenges: Where second steps wait.
        recovery: The recovery codes.
        trail: Where it is recorded that a second step was asked for.
        requirement: Who must have a second factor.
        ttl_seconds: How long a second step may take.
        has_passkeys: Whether passkeys can be proven here.
        enrol_url: Where factors are enrolled.
    """

    def __init__(
        self,
        user_model: type[HasAccount],
        challenges: Challenges,
        recovery: RecoveryCodes,
        trail: AuditTrail,
        requirement: Requirement,
        *,
        ttl_seconds: float,
        has_passkeys: bool,
        enrol_url: str,
    ) -> None:
        self._user = user_model
        self._challenges = challenges
        self._recovery = recovery
        self._trail = trail
        self._requirement = requirement
        self._ttl_seconds = ttl_seconds
        self.has_passkeys = has_passkeys
        self._enrol_url = enrol_url

    @property
    def enrol_url(self) -> str:
        """Where a factor is enrolled."""
        return self._enrol_url

    async def is_required(self, session: AsyncSession, user_id: UUID, roles: Collection[str]) -> bool:
        """Whether this account may do nothing without a second factor."""
        return await self._requirement(session, user_id, roles)

    async def ask(
        self, session: AsyncSession, user_id: UUID, device: Device, *, methods: Sequence[str]
    ) -> SecondStep | None:
        """The second step of a login, as `SecondFactors` says: whoever has a factor must prove one."""
        own = select(Factor.kind).where(Factor.user_id == user_id, Factor.confirmed_at.is_not(None)).distinct()
        kinds = set(await session.scalars(own))
        if not kinds:
            return None
        user = await session.get_one(self._user, user_id, populate_existing=True)
        if not self.has_passkeys:  # they still count, so such an account is not opened by a password alone
            kinds.discard("webauthn")
        if await self._recovery.left(session, user_id):
            kinds.add("recovery_code")
        token, browser_secret = token_urlsafe(TOKEN_BYTES), token_urlsafe(TOKEN_BYTES) if device.keeps_cookies else None
        await self._challenges.make(
            session,
            ChallengeKind.STEP,
            hashed(token),
            ttl_seconds=self._ttl_seconds,
            user_id=user_id,
            browser_secret=browser_secret,
            note=" ".join(methods),
            account_hash=account_hash(user),
        )
        await self._trail.record(session, "mfa.asked", target=f"user:{user_id}", after={"methods": " ".join(methods)})
        return SecondStep(token, tuple(sorted(kinds)), int(self._ttl_seconds), browser_secret)


def account_hash(user: HasAccount) -> str:
    """What changes with the password, so that a second step that is under way ends with it."""
    return sha256((user.password_hash or "").encode()).hexdigest()
