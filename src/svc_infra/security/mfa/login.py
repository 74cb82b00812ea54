"""Proving second factors: in the second step of a login, by a passkey alone, and again later."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from secrets import token_urlsafe
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase
from svc_infra.errors import InvalidCredentialsError, InvalidTokenError
from svc_infra.obs import context
from svc_infra.security import methods
from svc_infra.security.accounts import Accounts, FactorProof, MailQueue
from svc_infra.security.audit import AuditTrail
from svc_infra.security.lockout import Lockout
from svc_infra.security.mfa import email_codes, recovery, totp
from svc_infra.security.mfa.challenges import ChallengeKind, Challenges, hashed
from svc_infra.security.mfa.email_codes import EmailCodes
from svc_infra.security.mfa.gate import TOKEN_BYTES, account_hash
from svc_infra.security.mfa.models import Challenge, EmailFactor, Factor
from svc_infra.security.mfa.passkeys import Passkeys, refused
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.mfa.totp import TotpFactors
from svc_infra.security.models import HasAccount
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.security.sessions import Device, Renewed, Sessions, TokenPair
from svc_infra.types import Clock

T = TypeVar("T")

RECOVERY_LOW_MAIL = "mfa_recovery_low"
_SEPARATORS = re.compile(r"[\s-]+")
_RECOVERY = re.compile(f"[{recovery.ALPHABET}]{{{recovery.CODE_CHARACTERS}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorKinds:
    """Everything that can be proven in one app.

    Attributes:
        passkeys: None where the app has none.
    """

    totp: TotpFactors
    recovery: RecoveryCodes
    email_codes: EmailCodes
    passkeys: Passkeys | None


@dataclass(frozen=True, slots=True)
class Proven:
    """What an attempt has proven: a kind of factor, and the methods that tokens name for it."""

    kind: str
    methods: tuple[str, ...]


class FactorLogin:
    """Second steps, logins by passkeys, and proofs of logins in one app. Each call is units of work of its own.

    An attempt is counted by the lockout before it is made, under the account's address as a password is. What it proves
    is used up in the transaction that opens or renews the login: one code, one login.

    Args:
        db: Where everything is kept.
        user_model: The app's users.
        accounts: Records what is refused.
        sessions: The logins.
        lockout: How often somebody may guess.
        challenges: What is under way.
        kinds: What can be proven.
        trail: Where uses are recorded.
        mail: What tells owners whose recovery codes run low.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        accounts: Accounts,
        sessions: Sessions,
        lockout: Lockout,
        challenges: Challenges,
        kinds: FactorKinds,
        trail: AuditTrail,
        mail: MailQueue,
        *,
        clock: Clock,
    ) -> None:
        self._db = db
        self._user = user_model
        self._accounts = accounts
        self._sessions = sessions
        self._lockout = lockout
        self._challenges = challenges
        self._kinds = kinds
        self._trail = trail
        self._mail = mail
        self._clock = clock

    async def verify(
        self, token: str, proof: FactorProof, device: Device, *, browser_secret: str | None
    ) -> tuple[TokenPair, bool]:
        """End the second step of a login.

        Args:
            token: What the first step gave.
            proof: Of a factor.
            device: Where the login comes from.
            browser_secret: What the browser's cookie shows.

        Returns:
            The login, and whether its tokens belong into cookies, as the first step said.

        Raises:
            InvalidTokenError: There is no such second step, any more, or not in this browser.
            InvalidCredentialsError: The proof proves nothing.
            RateLimitedError: There were too many failed attempts.
        """
        step, user = await self._step(token, browser_secret)
        device = replace(device, keeps_cookies=step.browser_hash is not None)
        async with self._db.session() as session:
            if not await self._challenges.attempt(session, step):
                raise _over()

        async def enter(session: AsyncSession, proven: Proven) -> TokenPair:
            if not await self._challenges.spend(session, step):
                raise _over()
            return await self._enter(session, user, device, (*step.note.split(), *proven.methods))

        return await self._attempt(user, proof, step.id, device, enter), device.keeps_cookies

    async def step_options(self, token: str, *, browser_secret: str | None) -> dict[str, Any]:
        """What a browser asks its authenticator with in a second step.

        Raises:
            InvalidTokenError: As for `verify`.
            InvalidCredentialsError: The app has no passkeys.
        """
        step, user = await self._step(token, browser_secret)
        async with self._db.session() as session:
            return await self._passkeys().options(session, user_id=user.id, flow_id=step.id)

    async def send_step_code(self, token: str, *, browser_secret: str | None) -> None:
        """Mail a code for a second step, to an account that has enrolled its address.

        Raises:
            InvalidTokenError: As for `verify`.
        """
        step, user = await self._step(token, browser_secret)
        await self._send_code(user, step.id)

    async def passkey_options(self, *, in_browser: bool) -> tuple[dict[str, Any], str | None]:
        """What a browser asks its authenticator with to log somebody in, and what its cookie must show then."""
        secret = token_urlsafe(TOKEN_BYTES) if in_browser else None
        async with self._db.session() as session:
            return await self._passkeys().options(session, browser_secret=secret), secret

    async def passkey_login(
        self, credential: dict[str, Any], device: Device, *, browser_secret: str | None
    ) -> TokenPair:
        """Log in whom a passkey names and has verified, without a password.

        Raises:
            InvalidCredentialsError: It proves nothing.
            RateLimitedError: There were too many failed attempts.
        """
        async with self._db.session(read_only=True) as session:
            passkey = await self._passkeys().find(session, credential)
            user = await session.get(self._user, passkey.user_id) if passkey is not None else None
        if user is None or not user.is_active:
            stranger = f"passkey:{hashed(credential['id'])}"
            await self._lockout.check(stranger, device.ip)
            await self._accounts.refused(stranger, None, action="mfa.refused", after={"kind": "webauthn"})
            raise refused()

        async def enter(session: AsyncSession, proven: Proven) -> TokenPair:
            return await self._enter(session, user, device, (*proven.methods, methods.PRESENCE, methods.MULTIPLE))

        proof = FactorProof(credential=credential)
        return await self._attempt(user, proof, None, device, enter, browser_secret=browser_secret)

    async def reauthenticate(self, user_id: UUID, session_id: UUID, proof: FactorProof, device: Device) -> Renewed:
        """Prove a login again, as `ProvesFactors` says."""
        user = await self._existing(user_id)

        async def renew(session: AsyncSession, proven: Proven) -> Renewed:
            await self._lockout.passed(session, user.email, device.ip)
            return await self._sessions.renew(session, session_id, methods=proven.methods)

        return await self._attempt(user, proof, session_id, device, renew)

    async def proof_options(self, user_id: UUID, session_id: UUID) -> dict[str, Any]:
        """What a browser asks its authenticator with to prove a login again.

        Raises:
            InvalidCredentialsError: The app has no passkeys.
        """
        async with self._db.session() as session:
            return await self._passkeys().options(session, user_id=user_id, flow_id=session_id)

    async def send_proof_code(self, user_id: UUID, session_id: UUID) -> None:
        """Mail a code to prove a login again, to an account that has enrolled its address."""
        await self._send_code(await self._existing(user_id), session_id)

    async def _attempt(
        self,
        user: HasAccount,
        proof: FactorProof,
        flow_id: UUID | None,
        device: Device,
        then: Callable[[AsyncSession, Proven], Awaitable[T]],
        *,
        browser_secret: str | None = None,
    ) -> T:
        kind = _kind(proof)
        await self._lockout.check(user.email, device.ip)
        try:
            waiting = await self._taken(user, kind, proof, flow_id, browser_secret)
            async with self._db.session() as session:
                proven = await self._proven(session, user, kind, proof, waiting, alone=flow_id is None)
                if proven is None:
                    raise InvalidCredentialsError("This proves nothing: the code is wrong, too old or used.")
                context.current().principal_id = str(user.id)
                result = await then(session, proven)
                await self._trail.record(session, "mfa.used", target=f"user:{user.id}", after={"kind": kind})
                return result
        except InvalidCredentialsError:
            await self._accounts.refused(user.email, user, action="mfa.refused", after={"kind": kind})
            raise

    async def _taken(
        self, user: HasAccount, kind: str, proof: FactorProof, flow_id: UUID | None, browser_secret: str | None
    ) -> Challenge | None:
        """What waits for this proof; the attempt at it is committed, whatever comes next."""
        async with self._db.session() as session:
            if kind == "email" and flow_id is not None:
                return await self._kinds.email_codes.attempt(session, user.id, flow_id)
            if proof.credential is not None:
                return await self._passkeys().taken(
                    session,
                    ChallengeKind.PASSKEY,
                    proof.credential,
                    user_id=user.id if flow_id is not None else None,
                    flow_id=flow_id,
                    browser_secret=browser_secret,
                )
        return None

    async def _proven(
        self,
        session: AsyncSession,
        user: HasAccount,
        kind: str,
        proof: FactorProof,
        waiting: Challenge | None,
        *,
        alone: bool,
    ) -> Proven | None:
        """What the proof proves; it is used up in this unit of work."""
        kinds, code = self._kinds, plain(proof.code or "")
        if kind == "webauthn":
            asked = waiting is not None and proof.credential is not None
            passkey = (
                await self._passkeys().use(session, user.id, proof.credential or {}, alone=alone) if asked else None
            )
            return Proven(kind, (methods.KEY,)) if passkey is not None else None
        if kind == "totp":
            app = await kinds.totp.use(session, user.id, code)
            return Proven(kind, (methods.ONE_TIME_CODE,)) if app is not None else None
        if kind == "recovery_code" and await kinds.recovery.use(session, user.id, code):
            await self._tell_when_few(session, user)
            return Proven(kind, (methods.RECOVERY,))
        if kind == "email" and waiting is not None and await kinds.email_codes.use(session, waiting, code):
            return Proven(kind, (methods.EMAIL,))
        return None

    async def _tell_when_few(self, session: AsyncSession, user: HasAccount) -> None:
        left = await self._kinds.recovery.left(session, user.id)
        if left <= recovery.LOW_COUNT:
            await self._mail.send(session, RECOVERY_LOW_MAIL, user.email, {"left": str(left)})

    async def _enter(
        self, session: AsyncSession, user: HasAccount, device: Device, proven: tuple[str, ...]
    ) -> TokenPair:
        """Open a login of the account as it was when it was looked at."""
        model = self._user
        same = [model.id == user.id, model.is_active, model.email == user.email]
        same.append(model.password_hash.is_not_distinct_from(user.password_hash))
        claim = update(model).where(*same).values(last_login_at=self._clock.now())
        claim = claim.execution_options(synchronize_session=False, **SAYS_WHAT_CHANGED)
        if await session.scalar(claim.returning(model.id)) is None:
            raise InvalidCredentialsError("The account has changed meanwhile: begin again.")
        await self._lockout.succeeded(session, user.email, device.ip)
        return await self._sessions.open(session, user.id, device, methods=proven)

    async def _step(self, token: str, browser_secret: str | None) -> tuple[Challenge, HasAccount]:
        async with self._db.session(read_only=True) as session:
            step = await self._challenges.find(
                session, ChallengeKind.STEP, Challenge.secret_hash == hashed(token), browser_secret=browser_secret
            )
            user = await session.get(self._user, step.user_id) if step is not None else None
        if step is None or user is None or not user.is_active:
            raise _over()
        if not hmac.compare_digest(step.account_hash or "", account_hash(user)):
            raise _over()
        return step, user

    async def _send_code(self, user: HasAccount, flow_id: UUID) -> None:
        async with self._db.session() as session:
            enrolled = (EmailFactor.user_id == user.id, Factor.confirmed_at.is_not(None))
            if await session.scalar(select(EmailFactor.id).where(*enrolled).limit(1)) is not None:
                await self._kinds.email_codes.send(session, user, flow_id)
                await self._trail.record(session, "mfa.code_sent", target=f"user:{user.id}")

    async def _existing(self, user_id: UUID) -> HasAccount:
        async with self._db.session(read_only=True) as session:
            return await session.get_one(self._user, user_id)

    def _passkeys(self) -> Passkeys:
        if self._kinds.passkeys is None:
            raise InvalidCredentialsError("This service takes no passkeys.")
        return self._kinds.passkeys


def _kind(proof: FactorProof) -> str:
    """What is proven, which its form tells."""
    if proof.credential is not None:
        return "webauthn"
    code = plain(proof.code or "")
    if code.isascii() and code.isdigit() and len(code) in (totp.CODE_DIGITS, email_codes.CODE_DIGITS):
        return "totp" if len(code) == totp.CODE_DIGITS else "email"
    return "recovery_code" if _RECOVERY.fullmatch(code) else "unknown"


def plain(code: str) -> str:
    """A code without what people type between its characters."""
    return _SEPARATORS.sub("", code).lower()


def _over() -> InvalidTokenError:
    return InvalidTokenError("This login was not begun here, took too long or is over: begin it again.")
