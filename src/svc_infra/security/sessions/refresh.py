"""The refresh tokens that keep logins alive.

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
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import InvalidTokenError, TokenExpiredError
from svc_infra.security.models import HasAccount, RefreshToken, Session
from svc_infra.types import Clock, new_id

REFRESH_TOKEN_BYTES = 32


class Exchanged(NamedTuple):
    """A login that goes on, and the refresh token that it goes on with."""

    login: Session
    refresh_token: str


class Reused(NamedTuple):
    """A login of which somebody has kept a copy."""

    session_id: UUID
    user_id: UUID


class RefreshTokens:
    """The refresh tokens of one app's logins.

    Args:
        user_model: Whose logins they are.
        keys: What successors are derived with, the newest first.
        idle: How long a token is good for that is not exchanged.
        grace: How long the previous token still gives its successor; 0 for not at all.
        clock: Where the time comes from.
    """

    def __init__(
        self, user_model: type[HasAccount], keys: Sequence[bytes], *, idle: timedelta, grace: timedelta, clock: Clock
    ) -> None:
        self._user = user_model
        self._keys = keys
        self._idle = idle
        self._grace = grace
        self._clock = clock

    def first(self, session: AsyncSession, login: Session) -> str:
        """The token that a login begins with, in this unit of work."""
        token = token_urlsafe(REFRESH_TOKEN_BYTES)
        session.add(self._row(new_id(), token, login))
        return token

    async def exchange(self, session: AsyncSession, token: str) -> Exchanged | Reused:
        """Exchange a token for its successor, in this unit of work.

        Raises:
            TokenExpiredError: The login has reached its end.
            InvalidTokenError: The token is unknown, or its login has ended.
        """
        now = self._clock.now()
        found = (
            await session.execute(
                select(RefreshToken, Session)
                .join(Session, Session.id == RefreshToken.session_id)
                .join(self._user, self._user.id == Session.user_id)
                .where(RefreshToken.token_hash == _hashed(token), Session.revoked_at.is_(None), self._user.is_active)
            )
        ).one_or_none()
        if found is None:
            raise ended()
        row, login = found
        if min(row.expires_at, login.expires_at) <= now:
            raise TokenExpiredError
        claim = update(RefreshToken).where(RefreshToken.id == row.id, RefreshToken.used_at.is_(None))
        claim = claim.values(used_at=now).execution_options(synchronize_session=False)
        if not _changed(await session.execute(claim)):
            await session.refresh(row)
            return await self._again(session, row, login, token)
        successor_id = new_id()
        successor = _derived(self._keys[0], token, successor_id)
        session.add(self._row(successor_id, successor, login, parent=row))
        login.last_seen_at = now
        return Exchanged(login, successor)

    async def login_of(self, session: AsyncSession, token: str) -> Session | None:
        """The login that a token belongs to, used or not, alive or not; None for what is no token of ours."""
        wanted = select(Session).join(RefreshToken, RefreshToken.session_id == Session.id)
        return await session.scalar(wanted.where(RefreshToken.token_hash == _hashed(token)))

    async def purge(self, session: AsyncSession, is_old: ColumnElement[bool], *, limit: int) -> int:
        """Delete tokens of such logins in this unit of work, of which one can have thousands; returns how many."""
        some = select(RefreshToken.id).join(Session, Session.id == RefreshToken.session_id).where(is_old).limit(limit)
        gone = delete(RefreshToken).where(RefreshToken.id.in_(some)).returning(RefreshToken.id)
        return len((await session.scalars(gone, execution_options={"synchronize_session": False})).all())

    def exist(self) -> ColumnElement[bool]:
        """Whether a login has any."""
        return exists().where(RefreshToken.session_id == Session.id)

    def is_alive(self) -> ColumnElement[bool]:
        """Whether a login has a token that can be exchanged: without one it has ended by idleness."""
        now = self._clock.now()
        return exists().where(
            RefreshToken.session_id == Session.id, RefreshToken.used_at.is_(None), RefreshToken.expires_at > now
        )

    async def _again(self, session: AsyncSession, row: RefreshToken, login: Session, token: str) -> Exchanged | Reused:
        child = (await session.execute(select(RefreshToken).where(RefreshToken.parent_id == row.id))).scalar_one()
        in_grace = row.used_at is not None and self._clock.now() - row.used_at < self._grace
        if not in_grace or child.used_at is not None:
            return Reused(login.id, login.user_id)
        for key in self._keys:
            successor = _derived(key, token, child.id)
            if hmac.compare_digest(_hashed(successor), child.token_hash):
                return Exchanged(login, successor)
        raise ended()  # its key left the ring within the grace time

    def _row(self, token_id: UUID, token: str, login: Session, parent: RefreshToken | None = None) -> RefreshToken:
        now = self._clock.now()
        return RefreshToken(
            id=token_id,
            session_id=login.id,
            token_hash=_hashed(token),
            parent_id=parent.id if parent else None,
            created_at=now,
            expires_at=min(login.expires_at, now + self._idle),
        )


def ended() -> InvalidTokenError:
    """The refusal of a login that is over."""
    return InvalidTokenError("The session has ended: log in again.")


def _hashed(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _derived(key: bytes, predecessor: str, token_id: UUID) -> str:
    return urlsafe_b64encode(hmac.digest(key, predecessor.encode() + token_id.bytes, "sha256")).rstrip(b"=").decode()


def _changed(result: Any) -> bool:
    return cast("CursorResult[Any]", result).rowcount == 1
