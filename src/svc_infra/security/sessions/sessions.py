"""Logins: begun, kept alive by refresh tokens, proven again, listed, ended."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import InvalidTokenError
from svc_infra.security.access.policy import Policy
from svc_infra.security.audit import AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.security.methods import combined
from svc_infra.security.models import HasAccount, Session, User
from svc_infra.security.principal import Principal
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.security.sessions.device import Device, Ended, OnEnd, Renewed, TokenPair
from svc_infra.security.sessions.live import LiveSessions
from svc_infra.security.sessions.refresh import RefreshTokens, Reused, ended
from svc_infra.security.sessions.second_step import SecondFactors, SecondStep
from svc_infra.security.tokens import AccessTokens
from svc_infra.types import Clock, SystemClock, new_id

MAX_LISTED = 100
"""Logins given in one list."""

_log = logging.getLogger(__name__)


class Sessions:
    """The logins of one app.

    Args:
        db: Where they are kept.
        live: Knows which of them are alive.
        trail: Where it is recorded that one begins or ends.
        tokens: Makes and verifies the access tokens.
        keys: Where the keys for refresh tokens and address hashes come from.
        policy: What the roles permit.
        second_factors: Knows whose login needs a second factor; None where nobody's does.
        user_model: Whose they are.
        ttl_seconds: How long a login lasts, however often it is refreshed.
        idle_seconds: How long one lasts that is not refreshed; None for as long as any.
        grace_seconds: How long the previous refresh token still gives its successor; 0 for not at all.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        live: LiveSessions,
        trail: AuditTrail,
        tokens: AccessTokens,
        keys: KeyRing,
        policy: Policy,
        *,
        second_factors: SecondFactors | None = None,
        user_model: type[HasAccount] = User,
        ttl_seconds: float,
        idle_seconds: float | None = None,
        grace_seconds: float,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._live = live
        self._trail = trail
        self._tokens = tokens
        self._second_factors = second_factors
        self._policy = policy
        self._ip_key = keys.derived("ip-hash")[0]
        self._ttl = timedelta(seconds=ttl_seconds)
        self._idle = timedelta(seconds=min(idle_seconds or ttl_seconds, ttl_seconds))
        self._clock = clock or SystemClock()
        self._refresh_tokens = RefreshTokens(
            user_model,
            keys.derived("refresh-token"),
            idle=self._idle,
            grace=timedelta(seconds=grace_seconds),
            clock=self._clock,
        )
        self._on_end: list[OnEnd] = []

    def on_end(self, callback: OnEnd) -> None:
        """Have this called in each unit of work that ends logins, for what ends with them."""
        self._on_end.append(callback)

    async def admit(
        self, session: AsyncSession, user_id: UUID, device: Device, *, methods: Sequence[str]
    ) -> TokenPair | SecondStep:
        """Begin a login in this unit of work, or its second step where one factor is not enough.

        Args:
            session: The unit of work.
            user_id: Who has proven the first factor.
            device: Where the login comes from.
            methods: What was proven, in the words of `svc_infra.security.methods`.
        """
        if self._second_factors is not None:
            step = await self._second_factors.ask(session, user_id, device, methods=methods)
            if step is not None:
                return step
        return await self.open(session, user_id, device, methods=methods)

    async def open(
        self, session: AsyncSession, user_id: UUID, device: Device, *, methods: Sequence[str] = ()
    ) -> TokenPair:
        """Begin a login in this unit of work. The caller has verified who it is for, by every factor that it needs.

        The login that a browser has had in its cookies ends with that, whoever's it was: nobody could end it later.
        """
        if device.keeps_cookies and device.held_token:
            replaced = await self._refresh_tokens.login_of(session, device.held_token)
            if replaced is not None:
                await self.revoke(session, replaced.id, reason="replaced")
        now = self._clock.now()
        login = Session(
            id=new_id(),
            user_id=user_id,
            user_agent=device.user_agent[:256],
            ip_hash=hmac.digest(self._ip_key, device.ip.encode(), "sha256").hex() if device.ip else "",
            methods=" ".join(combined(methods)),
            authenticated_at=now,
            created_at=now,
            last_seen_at=now,
            expires_at=now + self._ttl,
        )
        session.add(login)
        await session.flush()
        where = {"user_id": str(user_id), "user_agent": login.user_agent, "methods": login.methods}
        await self._trail.record(session, "session.opened", target=f"session:{login.id}", after=where)
        return self._pair(login, self._refresh_tokens.first(session, login))

    async def refresh(self, refresh_token: str) -> TokenPair:
        """Exchange a refresh token for its successor and a new access token, in a unit of work of its own.

        Raises:
            TokenExpiredError: The login has reached its end.
            InvalidTokenError: The token is unknown, its login has ended, or it was used before; then its login ends.
        """
        async with self._db.session() as session:
            outcome = await self._refresh_tokens.exchange(session, refresh_token)
            if isinstance(outcome, Reused):
                await self.revoke(session, outcome.session_id, reason="refresh_token_reused")
                who = {"session_id": str(outcome.session_id), "user_id": str(outcome.user_id)}
                _log.warning("auth.refresh_token_reused", extra=who)
        if isinstance(outcome, Reused):  # raised only now, so that what it means for the login is committed
            raise ended()
        return self._pair(*outcome)

    async def principal(self, access_token: str, *, via: Literal["jwt", "cookie"] = "jwt") -> Principal:
        """Who an access token stands for: its login must live and its account be active.

        Raises:
            TokenExpiredError: The token is genuine, but its time is over.
            InvalidTokenError: It is not genuine, its login has ended, or its account is disabled or gone.
        """
        claims = self._tokens.verify(access_token)
        live = await self._live.find(claims.session_id, claims.user_id)
        if live is None or live.user_id != claims.user_id:
            raise ended()
        if claims.authenticated_at < live.authenticated_at.replace(microsecond=0):
            raise InvalidTokenError("The login was proven again since: use the token that it got then, or refresh.")
        roles = () if live.lacks_second_factor else live.roles
        return Principal(
            id=live.user_id,
            email=live.email,
            roles=frozenset(roles),
            permissions=self._policy.permissions(roles),
            via=via,
            session_id=claims.session_id,
            methods=live.methods,
            authenticated_at=claims.authenticated_at,
            lacks_second_factor=live.lacks_second_factor,
        )

    async def holder(self, refresh_token: str) -> Principal | None:
        """Whose login a cookie's refresh token belongs to, alive or not: only for ending it; None where nobody's."""
        async with self._db.session(read_only=True) as session:
            login = await self._refresh_tokens.login_of(session, refresh_token)
        return Principal(id=login.user_id, email="", via="cookie", session_id=login.id) if login is not None else None

    async def renew(self, session: AsyncSession, session_id: UUID, *, methods: Sequence[str]) -> Renewed:
        """Note in this unit of work that a login was proven again, by whom it belongs to; its older access tokens end.

        Args:
            session: The unit of work.
            session_id: The login; no other one of the account is any fresher for it.
            methods: What was proven, beside what was before.

        Raises:
            InvalidTokenError: The login has ended meanwhile.
        """
        login = await self._locked(session, session_id)
        login.authenticated_at = self._clock.now()
        login.methods = " ".join(combined(login.methods.split(), methods))
        after = {"methods": " ".join(methods)}
        await self._trail.record(session, "session.reauthenticated", target=f"session:{session_id}", after=after)
        return Renewed(*self._access_token(login))

    async def add_methods(self, session: AsyncSession, session_id: UUID, methods: Sequence[str]) -> None:
        """Note in this unit of work that a login has proven further factors, which makes it no fresher.

        Raises:
            InvalidTokenError: The login has ended meanwhile.
        """
        login = await self._locked(session, session_id)
        login.methods = " ".join(combined(login.methods.split(), methods))

    def is_fresh(self, user: Principal, *, max_age_seconds: float) -> bool:
        """Whether a caller has proven who it is within this time; a key never has."""
        at = user.authenticated_at
        return at is not None and self._clock.now() - at <= timedelta(seconds=max_age_seconds)

    async def list(self, session: AsyncSession, user_id: UUID, *, limit: int = MAX_LISTED) -> list[Session]:
        """The logins of a user that can be used, the one that was seen last first."""
        alive = select(Session).where(self._alive(), self._refresh_tokens.is_alive(), Session.user_id == user_id)
        return list(await session.scalars(alive.order_by(Session.last_seen_at.desc(), Session.id.desc()).limit(limit)))

    async def revoke(
        self, session: AsyncSession, session_id: UUID, *, reason: str, user_id: UUID | None = None
    ) -> bool:
        """End a login in this unit of work; from its commit on none of its tokens is accepted.

        Args:
            session: The unit of work.
            session_id: The login.
            reason: Why, in a word or two.
            user_id: Only when it is this user's.

        Returns:
            False when there is none, or it had ended before.
        """
        wanted = [Session.id == session_id, *([Session.user_id == user_id] if user_id is not None else [])]
        return bool(await self._end(session, wanted, f"session:{session_id}", reason, None))

    async def revoke_all(self, session: AsyncSession, user_id: UUID, *, reason: str, keep: UUID | None = None) -> int:
        """End every login of a user in this unit of work, but the one to keep.

        Returns:
            How many.
        """
        wanted = [Session.user_id == user_id, *([Session.id != keep] if keep is not None else [])]
        return await self._end(session, wanted, f"user:{user_id}", reason, user_id)

    async def purge(self, session: AsyncSession, *, older_than_seconds: float, limit: int = 1000) -> int:
        """Delete logins that ended longer ago than this, after their tokens; returns how many rows, up to the limit."""
        before = self._clock.now() - timedelta(seconds=older_than_seconds)
        is_old = or_(Session.expires_at < before, Session.revoked_at < before)
        tokens = await self._refresh_tokens.purge(session, is_old, limit=limit)
        bare = select(Session.id).where(is_old, ~self._refresh_tokens.exist()).limit(limit - tokens)
        gone = delete(Session).where(Session.id.in_(bare)).returning(Session.id)
        return tokens + len((await session.scalars(gone, execution_options=SAYS_WHAT_CHANGED)).all())

    def _alive(self) -> ColumnElement[bool]:
        return and_(Session.revoked_at.is_(None), Session.expires_at > self._clock.now())

    async def _end(
        self,
        session: AsyncSession,
        wanted: Sequence[ColumnElement[bool]],
        target: str,
        reason: str,
        user_id: UUID | None,
    ) -> int:
        ending = update(Session).where(self._alive(), *wanted).returning(Session.id)
        ending = ending.values(revoked_at=self._clock.now(), revoke_reason=reason)
        options = {"synchronize_session": False, **SAYS_WHAT_CHANGED}
        session_ids = [row.id for row in await session.execute(ending, execution_options=options)]
        for session_id in session_ids:
            self._live.forget(session, session_id=session_id)
        if session_ids:
            after = {"reason": reason, "sessions": len(session_ids)}
            await self._trail.record(session, "session.revoked", target=target, after=after)
        for callback in self._on_end:
            await callback(session, Ended(session_ids, user_id, reason))
        return len(session_ids)

    def _pair(self, login: Session, refresh_token: str) -> TokenPair:
        access_token, expires_in = self._access_token(login)
        ends_in = int((login.expires_at - self._clock.now()).total_seconds())
        return TokenPair(access_token, refresh_token, expires_in, login.id, ends_in)

    def _access_token(self, login: Session) -> tuple[str, int]:
        return self._tokens.issue(
            user_id=login.user_id,
            session_id=login.id,
            session_ends_at=min(login.expires_at, login.last_seen_at + self._idle),
            authenticated_at=login.authenticated_at,
            methods=login.methods.split(),
        )

    async def _locked(self, session: AsyncSession, session_id: UUID) -> Session:
        wanted = select(Session).where(self._alive(), Session.id == session_id).with_for_update()
        login = (await session.scalars(wanted.execution_options(populate_existing=True))).one_or_none()
        if login is None:
            raise ended()
        return login
