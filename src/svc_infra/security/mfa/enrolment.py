"""Enrolling second factors: begun, and confirmed by proving them once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase
from svc_infra.errors import BadRequestError, ConflictError, ForbiddenError
from svc_infra.security import methods
from svc_infra.security.audit import AuditTrail
from svc_infra.security.mfa.challenges import ChallengeKind
from svc_infra.security.mfa.factors import Factors
from svc_infra.security.mfa.login import FactorKinds, plain
from svc_infra.security.mfa.models import EmailFactor, Factor
from svc_infra.security.mfa.passkeys import Passkeys, refused
from svc_infra.security.models import HasAccount
from svc_infra.security.sessions import Sessions
from svc_infra.types import Clock, new_id

WRONG_CODE = "This code is wrong, or too old."


@dataclass(frozen=True, slots=True)
class NewTotp:
    """An authenticator app that has not given its first code.

    Attributes:
        uri: What its QR code says.
        qr_svg: The QR code.
    """

    id: UUID
    secret: str = field(repr=False)
    uri: str = field(repr=False)
    qr_svg: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A factor that counts from now on.

    Attributes:
        recovery_codes: Shown this once; empty where the account has some already.
    """

    factor: Factor
    recovery_codes: list[str] = field(repr=False)


class Enrolment:
    """Enrols the factors of one app's accounts. Each call is a unit of work of its own.

    Whoever calls has checked that the login is fresh. The login that enrols a factor has proven it by that, so it may
    do from then on what needs a second factor.

    Args:
        db: Where everything is kept.
        factors: Records it, and tells the owner.
        kinds: What can be enrolled.
        sessions: The logins.
        trail: Where it is recorded that new recovery codes were made.
        offers_email: Whether codes by mail can be enrolled.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        factors: Factors,
        kinds: FactorKinds,
        sessions: Sessions,
        trail: AuditTrail,
        *,
        offers_email: bool,
        clock: Clock,
    ) -> None:
        self._db = db
        self._factors = factors
        self._kinds = kinds
        self._sessions = sessions
        self._trail = trail
        self._offers_email = offers_email
        self._clock = clock

    async def begin_totp(self, user_id: UUID, name: str) -> NewTotp:
        """Begin to enrol an authenticator app.

        Raises:
            ConflictError: The account has too many factors.
        """
        totp = self._kinds.totp
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id)
            factor, secret = await totp.begin(session, user_id, name)
            await self._begun(session, user_id, "totp")
        uri = totp.uri(secret, user.email)
        return NewTotp(factor.id, secret, uri, totp.qr_svg(uri))

    async def confirm_totp(self, user_id: UUID, session_id: UUID, factor_id: UUID, code: str) -> Enrolled:
        """Enrol an authenticator app with its first code, which is used up by it.

        Raises:
            BadRequestError: The code is wrong, or too late.
        """
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id, beside=factor_id)
            factor = await self._kinds.totp.confirm(session, user_id, factor_id, plain(code))
            if factor is None:
                raise BadRequestError(WRONG_CODE)
            return await self._enrolled(session, user, session_id, factor, methods.ONE_TIME_CODE)

    async def passkey_options(self, user_id: UUID, session_id: UUID) -> dict[str, Any]:
        """What a browser makes a passkey with.

        Raises:
            ConflictError: The account has too many factors.
            ForbiddenError: The app has no passkeys.
        """
        passkeys = self._passkeys()
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id)
            await self._begun(session, user_id, "webauthn")
            return await passkeys.enrol_options(session, user, session_id)

    async def add_passkey(self, user_id: UUID, session_id: UUID, credential: Mapping[str, Any], name: str) -> Enrolled:
        """Enrol the passkey that a browser has made.

        Raises:
            InvalidCredentialsError: It is not what this login was asked for, or is so no more.
            ConflictError: It is enrolled already, or the account has too many factors.
            ForbiddenError: The app has no passkeys.
        """
        passkeys = self._passkeys()
        async with self._db.session() as session:
            challenge = await passkeys.taken(
                session, ChallengeKind.ENROL, credential, user_id=user_id, flow_id=session_id
            )
        if challenge is None:
            raise refused()
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id)
            passkey = await passkeys.enrol(session, challenge, credential, name)
            return await self._enrolled(session, user, session_id, passkey, methods.KEY)

    async def send_email_code(self, user_id: UUID, session_id: UUID) -> None:
        """Begin to enrol the account's address, by a code that is mailed to it.

        Raises:
            ForbiddenError: The app has no codes by mail.
            ConflictError: The address is enrolled already, or the account has too many factors.
        """
        if not self._offers_email:
            raise ForbiddenError("This service mails no codes.")
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id)
            if await session.scalar(select(EmailFactor.id).where(EmailFactor.user_id == user_id)) is not None:
                raise ConflictError("The address is enrolled already.")
            await self._begun(session, user_id, "email")
            await self._kinds.email_codes.send(session, user, session_id)

    async def confirm_email(self, user_id: UUID, session_id: UUID, code: str) -> Enrolled:
        """Enrol the account's address with the code that was mailed to it.

        Raises:
            BadRequestError: The code is wrong, or too late.
            ConflictError: The address is enrolled already, or the account has too many factors.
            ForbiddenError: The app has no codes by mail.
        """
        if not self._offers_email:
            raise ForbiddenError("This service mails no codes.")
        codes = self._kinds.email_codes
        async with self._db.session() as session:
            waiting = await codes.attempt(session, user_id, session_id)
        async with self._db.session() as session:
            user = await self._factors.room_for_one(session, user_id)
            if await session.scalar(select(EmailFactor.id).where(EmailFactor.user_id == user_id)) is not None:
                raise ConflictError("The address is enrolled already.")
            if waiting is None or not await codes.use(session, waiting, plain(code)):
                raise BadRequestError(WRONG_CODE)
            now = self._clock.now()
            factor = EmailFactor(id=new_id(), user_id=user_id, name="E-mail", created_at=now, confirmed_at=now)
            session.add(factor)
            return await self._enrolled(session, user, session_id, factor, methods.EMAIL)

    async def new_recovery_codes(self, user_id: UUID) -> list[str]:
        """New recovery codes; those before them end.

        Raises:
            ConflictError: The account has no factor that they could stand in for.
        """
        async with self._db.session() as session:
            if not await self._factors.has_strong(session, user_id):
                raise ConflictError("Recovery codes stand in for another factor: enrol one first.")
            return await self._made_codes(session, user_id)

    async def _enrolled(
        self, session: AsyncSession, user: HasAccount, session_id: UUID, factor: Factor, method: str
    ) -> Enrolled:
        await self._factors.enrolled(session, user, factor)
        await self._sessions.add_methods(session, session_id, (method,))
        is_strong = not isinstance(factor, EmailFactor)
        has_codes = not is_strong or await self._kinds.recovery.left(session, user.id)
        return Enrolled(factor, [] if has_codes else await self._made_codes(session, user.id))

    async def _made_codes(self, session: AsyncSession, user_id: UUID) -> list[str]:
        codes = await self._kinds.recovery.make(session, user_id)
        await self._trail.record(session, "mfa.recovery_codes_made", target=f"user:{user_id}")
        return codes

    async def _begun(self, session: AsyncSession, user_id: UUID, kind: str) -> None:
        await self._trail.record(session, "mfa.enrolment_begun", target=f"user:{user_id}", after={"kind": kind})

    def _passkeys(self) -> Passkeys:
        if self._kinds.passkeys is None:
            raise ForbiddenError("This service takes no passkeys.")
        return self._kinds.passkeys
