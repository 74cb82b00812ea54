"""Logins, and the refresh tokens that keep them alive.

A login is a family of refresh tokens, each exchanged once for its successor. What happens to a token that is shown:

- unused: it is marked as used and its successor made, by one compare-and-set, so of many callers one is first;
- used less than `refresh_grace_seconds` ago, and its successor still unused: the same successor is given again, with a
  new access token. Two tabs, or a client whose answer was lost, stay logged in, and there is still one chain. Only the
  immediate predecessor of the newest token qualifies;
- used in any other way: someone kept a copy. The whole login is revoked, and that is committed although the request
  fails (RFC 9700, 4.14.2);
- unknown, expired, or of a login that was revoked or whose account is disabled: refused.

Only hashes are stored. A successor can still be given twice because it is not drawn but derived (HMAC-SHA256) from its
predecessor, which the database does not have, and a key that only the service has.
"""

from __future__ import annotations

import hmac
import logging
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any, Literal, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import InvalidTokenError, TokenExpiredError
from svc_infra.security.access.policy import Policy
from svc_infra.security.audit import AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.security.methods import combined
from svc_infra.security.models import HasAccount, RefreshToken, Session, User
from svc_infra.security.principal import Principal
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.security.sessions.device import Device, Ended, OnEnd, Renewed, TokenPair
from svc_infra.security.sessions.live import LiveSessions
from svc_infra.security.sessions.second_step import SecondFactors, SecondStep
from svc_infra.security.tokens import AccessTokens
from svc_infra.types import Clock, SystemClock, new_id

REFRESH_TOKEN_BYTES = 32
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
        self._user = user_model
        self._policy = policy
        self._successor_keys = keys.derived("refresh-token")
        self._ip_key = keys.derived("ip-hash")[0]
        self._ttl = timedelta(seconds=ttl_seconds)
        self._idle = timedelta(seconds=min(idle_seconds or ttl_seconds, ttl_seconds))
        self._grace = timedelta(seconds=grace_seconds)
        self._clock = clock or SystemClock()
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
        """Begin a login in this unit of work. The caller has verified who it is for, by every factor that it needs."""
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
        refresh_token = token_urlsafe(REFRESH_TOKEN_BYTES)
        session.add(_row(new_id(), refresh_token, login, now, self._idle))
        return self._pair(login, refresh_token)

    async def refresh(self, refresh_token: str) -> TokenPair:
        """Exchange a refresh token for its successor and a new access token, in a unit of work of its own.

        Raises:
            TokenExpiredError: The login has reached its end.
            InvalidTokenError: The token is unknown, its login has ended, or it was used before; then its login ends.
        """
        async with self._db.session() as session:
            outcome = await self._rotate(session, refresh_token)
        if isinstance(outcome, InvalidTokenError):  # raised only now, so that what it means for the login is committed
            raise outcome
        return outcome

    async def principal(self, access_token: str, *, via: Literal["jwt", "cookie"] = "jwt") -> Principal:
        """Who an access token stands for: its login must live and its account be active.

        Raises:
            TokenExpiredError: The token is genuine, but its time is over.
            InvalidTokenError: It is not genuine, its login has ended, or its account is disabled or gone.
        """
        claims = self._tokens.verify(access_token)
        live = await self._live.find(claims.session_id, claims.user_id)
        if live is None or live.user_id != claims.user_id:
            raise _ended()
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
        """The logins of a user that are alive, the one that was seen last first."""
        alive = select(Session).where(self._alive(), Session.user_id == user_id)
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
        """Delete logins that ended longer ago than this, and their tokens; returns how many, up to the limit."""
        before = self._clock.now() - timedelta(seconds=older_than_seconds)
        old = select(Session.id).where(or_(Session.expires_at < before, Session.revoked_at < before)).limit(limit)
        gone = delete(Session).where(Session.id.in_(old)).returning(Session.id)
        return len((await session.scalars(gone, execution_options=SAYS_WHAT_CHANGED)).all())

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
        ended = (
            await session.execute(
                update(Session)
                .where(self._alive(), *wanted)
                .values(revoked_at=self._clock.now(), revoke_reason=reason)
                .returning(Session.id)
                .execution_options(synchronize_session=False, **SAYS_WHAT_CHANGED)
            )
        ).all()
        for row in ended:
            self._live.forget(session, session_id=row.id)
        if ended:
            after = {"reason": reason, "sessions": len(ended)}
            await self._trail.record(session, "session.revoked", target=target, after=after)
        for callback in self._on_end:
            await callback(session, Ended([row.id for row in ended], user_id, reason))
        return len(ended)

    async def _rotate(self, session: AsyncSession, refresh_token: str) -> TokenPair | InvalidTokenError:
        now = self._clock.now()
        found = (
            await session.execute(
                select(RefreshToken, Session)
                .join(Session, Session.id == RefreshToken.session_id)
                .join(self._user, self._user.id == Session.user_id)
                .where(
                    RefreshToken.token_hash == _hashed(refresh_token),
                    Session.revoked_at.is_(None),
                    self._user.is_active,
                )
            )
        ).one_or_none()
        if found is None:
            return _ended()
        token, login = found
        if min(token.expires_at, login.expires_at) <= now:
            return TokenExpiredError()
        claimed = await session.execute(
            update(RefreshToken)
            .where(RefreshToken.id == token.id, RefreshToken.used_at.is_(None))
            .values(used_at=now)
            .execution_options(synchronize_session=False)
        )
        if _changed(claimed):
            successor_id = new_id()
            successor = _derived(self._successor_keys[0], refresh_token, successor_id)
            session.add(_row(successor_id, successor, login, now, self._idle, parent=token))
            login.last_seen_at = now
            return self._pair(login, successor)
        await session.refresh(token)
        return await self._replayed(session, token, login, refresh_token)

    async def _replayed(
        self, session: AsyncSession, token: RefreshToken, login: Session, refresh_token: str
    ) -> TokenPair | InvalidTokenError:
        child = (await session.execute(select(RefreshToken).where(RefreshToken.parent_id == token.id))).scalar_one()
        in_grace = token.used_at is not None and self._clock.now() - token.used_at < self._grace
        if not in_grace or child.used_at is not None:
            await self.revoke(session, login.id, reason="refresh_token_reused")
            _log.warning(
                "auth.refresh_token_reused", extra={"session_id": str(login.id), "user_id": str(login.user_id)}
            )
            return _ended()
        for key in self._successor_keys:
            successor = _derived(key, refresh_token, child.id)
            if hmac.compare_digest(_hashed(successor), child.token_hash):
                return self._pair(login, successor)
        return _ended()  # its key left the ring within the grace time

    def _pair(self, login: Session, refresh_token: str) -> TokenPair:
        access_token, expires_in = self._access_token(login)
        ends_in = int((login.expires_at - self._clock.now()).total_seconds())
        return TokenPair(access_token, refresh_token, expires_in, login.id, ends_in)

    def _access_token(self, login: Session) -> tuple[str, int]:
        return self._tokens.issue(
            user_id=login.user_id,
            session_id=login.id,
            session_ends_at=login.expires_at,
            authenticated_at=login.authenticated_at,
            methods=login.methods.split(),
        )

    async def _locked(self, session: AsyncSession, session_id: UUID) -> Session:
        wanted = select(Session).where(self._alive(), Session.id == session_id).with_for_update()
        login = (await session.scalars(wanted.execution_options(populate_existing=True))).one_or_none()
        if login is None:
            raise _ended()
        return login


def _row(
    token_id: UUID,
    refresh_token: str,
    login: Session,
    now: datetime,
    idle: timedelta,
    parent: RefreshToken | None = None,
) -> RefreshToken:
    return RefreshToken(
        id=token_id,
        session_id=login.id,
        token_hash=_hashed(refresh_token),
        parent_id=parent.id if parent else None,
        created_at=now,
        expires_at=min(login.expires_at, now + idle),
    )


def _hashed(refresh_token: str) -> str:
    return sha256(refresh_token.encode("utf-8", "surrogatepass")).hexdigest()


def _derived(key: bytes, predecessor: str, token_id: UUID) -> str:
    return urlsafe_b64encode(hmac.digest(key, predecessor.encode() + token_id.bytes, "sha256")).rstrip(b"=").decode()


def _changed(result: Any) -> bool:
    return cast("CursorResult[Any]", result).rowcount == 1


def _ended() -> InvalidTokenError:
    return InvalidTokenError("The session has ended: log in again.")
