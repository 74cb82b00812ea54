"""Keys in the app's own database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, Row, Table, and_, bindparam, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.expression import Executable

from svc_infra.db import AsyncDatabase
from svc_infra.idempotency.answer import Answer
from svc_infra.idempotency.models import IdempotencyRow
from svc_infra.idempotency.store import DEFAULT_LEASE_SECONDS, DEFAULT_TTL_SECONDS, Claim, Refusal, check_times
from svc_infra.types import Clock, SystemClock

# Built once: building them for each request was a third of what a claim costs.
_KEYS = cast(Table, IdempotencyRow.__table__)
_OF = _KEYS.c
_NEW = insert(_KEYS).values({column.name: bindparam(f"new_{column.name}") for column in _OF})
_IS_LEFT = and_(
    _OF.status.is_(None), _OF.lease_expires_at <= bindparam("now"), _OF.fingerprint == _NEW.excluded.fingerprint
)
_CLAIM = _NEW.on_conflict_do_update(
    index_elements=[_OF.key],
    set_={column.name: _NEW.excluded[column.name] for column in _OF if column is not _OF.key},
    where=or_(_OF.expires_at <= bindparam("now"), _IS_LEFT),
).returning(_OF.token)
_LOOK = select(_KEYS).where(_OF.key == bindparam("key"))
_HELD = (_OF.key == bindparam("held_key"), _OF.token == bindparam("held_token"), _OF.status.is_(None))
_FINISH = (
    update(_KEYS)
    .where(*_HELD)
    .values({name: bindparam(f"new_{name}") for name in ("expires_at", "status", "headers", "body")})
)
_RELEASE = delete(_KEYS).where(*_HELD)
_OLD = select(_OF.key).where(_OF.expires_at <= bindparam("now")).order_by(_OF.expires_at).limit(bindparam("limit"))
_PURGE = delete(_KEYS).where(_OF.key.in_(_OLD.with_for_update(skip_locked=True))).returning(_OF.key)


class SqlIdempotencyStore:
    """Keeps keys in SQLite or PostgreSQL, and answers in the transaction of the handler that made them.

    The claim is a transaction of its own, before the handler; the answer is one more statement in the handler's unit
    of work. A crash before its commit leaves neither effect nor answer, and the key can be claimed again when the
    lease has ended; after it there are both. A request that outlives its lease and loses its key to another one fails
    to write its answer, and its effects are rolled back with it. So the effects of one key, as far as they are in
    that unit of work, are committed once.

    Args:
        db: The database; its migrations must have run.
        lease_seconds: When a key whose request never finished can be claimed again.
        ttl_seconds: How long an answer is kept.
        clock: The machine's own by default; the machines of one service must agree on it within the lease.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        *,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        check_times(lease_seconds, ttl_seconds)
        self._db = db
        self._lease = timedelta(seconds=lease_seconds)
        self._ttl = timedelta(seconds=ttl_seconds)
        self._clock = clock or SystemClock()

    async def claim(self, key: str, fingerprint: str) -> Claim | Answer | Refusal:
        """See `IdempotencyStore.claim`."""
        now = self._clock.now()
        if self._db.dialect == "sqlite":
            # A claim waits for the only writer, which may be the very request that is in progress: look first.
            async with self._db.session(read_only=True) as session:
                row = (await session.execute(_LOOK, {"key": key})).first()
            if row is not None and not _is_free(row, fingerprint, now):
                return _found(row, fingerprint)
        claim = Claim(key, secrets.token_hex(16))
        values = {
            "now": now,
            "new_key": key,
            "new_fingerprint": fingerprint,
            "new_token": claim.token,
            "new_lease_expires_at": now + self._lease,
            "new_expires_at": now + self._ttl,
            "new_status": None,
            "new_headers": None,
            "new_body": None,
        }
        async with self._db.session() as session:
            if await session.scalar(_CLAIM, values) is not None:
                return claim
            row = (await session.execute(_LOOK, {"key": key})).first()
        return Refusal.IN_PROGRESS if row is None else _found(row, fingerprint)  # None: released this very moment

    def joins(self, session: AsyncSession | None) -> bool:
        """See `IdempotencyStore.joins`: a unit of work of the same database."""
        return session is not None and session.bind is self._db.engine

    async def finish(self, claim: Claim, answer: Answer, *, session: AsyncSession | None = None) -> bool:
        """See `IdempotencyStore.finish`."""
        kept = {"new_status": answer.status, "new_headers": answer.packed_headers(), "new_body": answer.body}
        return await self._end(_FINISH, claim, session, new_expires_at=self._clock.now() + self._ttl, **kept)

    async def release(self, claim: Claim, *, session: AsyncSession | None = None) -> bool:
        """See `IdempotencyStore.release`."""
        return await self._end(_RELEASE, claim, session)

    async def purge(self, *, limit: int) -> int:
        """See `IdempotencyStore.purge`."""
        async with self._db.session() as session:
            return len((await session.scalars(_PURGE, {"now": self._clock.now(), "limit": limit})).all())

    async def ping(self) -> None:
        """See `IdempotencyStore.ping`."""
        await self._db.ping()

    async def close(self) -> None:
        """See `IdempotencyStore.close`: the database is the app's."""

    async def _end(self, statement: Executable, claim: Claim, session: AsyncSession | None, **values: Any) -> bool:
        values |= {"held_key": claim.key, "held_token": claim.token}
        async with self._joined(session) as unit:
            return cast("CursorResult[Any]", await unit.execute(statement, values)).rowcount == 1

    @asynccontextmanager
    async def _joined(self, session: AsyncSession | None) -> AsyncIterator[AsyncSession]:
        if session is not None:
            yield session
        else:
            async with self._db.session() as own:
                yield own


def _is_free(row: Row[Any], fingerprint: str, now: datetime) -> bool:
    left = row.status is None and row.lease_expires_at <= now and row.fingerprint == fingerprint
    return row.expires_at <= now or left


def _found(row: Row[Any], fingerprint: str) -> Answer | Refusal:
    if row.fingerprint != fingerprint:
        return Refusal.REUSED
    if row.status is None:
        return Refusal.IN_PROGRESS
    return Answer.unpacked(row.status, row.headers or "[]", row.body or b"")
