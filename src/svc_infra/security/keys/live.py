"""Which keys are alive, remembered for as long as nothing about them or their owners changes.

As with logins, what was read is kept in the app's cache and forgotten by every process right after the commit of a
transaction that changes a key, its owner or the owner's membership through the ORM. A key names its owner by a mark, so
that all keys of an owner are forgotten at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast
from uuid import UUID

import sqlalchemy.orm
from sqlalchemy import Connection, Select, Table, and_, event, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, object_session

from svc_infra.cache import Cache, cached
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.db.unit_of_work import UnitOfWork
from svc_infra.security.keys.form import owner_mark
from svc_infra.security.keys.models import ApiKey
from svc_infra.security.models import HasAccount, Membership, Organization
from svc_infra.security.sessions.live import SAYS_WHAT_CHANGED
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import current_wiring

_EVERY_KEY = "auth:keys"


@dataclass(frozen=True, slots=True)
class LiveKey:
    """A key that has not ended, and its owner, who is active.

    Attributes:
        user_id: None for a service's.
        membership_role: The user's role in the organization that the key is bound to.
        rate: How often it may be used; None for what its routes say.
    """

    key_id: UUID
    key_hash: str
    user_id: UUID | None
    organization_id: UUID | None
    email: str
    roles: tuple[str, ...]
    membership_role: str | None
    scopes: tuple[str, ...]
    rate: str | None
    expires_at: datetime


class LiveKeys:
    """Finds keys that are alive, by one indexed read, or none.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        cache: Where they are remembered; None reads the database each time.
        ttl_seconds: For how long at most.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        *,
        cache: Cache | None = None,
        ttl_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._user = user_model
        self._cache = cache
        self._clock = clock or SystemClock()
        self._find: Callable[[str, tuple[str, ...]], Awaitable[LiveKey | None]] = self._read
        if cache is not None:
            self._find = cached(
                ttl_seconds, cache=cache, tags=_tags, by_tenant=False, negative_ttl=0, early=0.0, kind=LiveKey | None
            )(_reader(self._read))

    async def find(self, mark: str, hashes: tuple[str, ...]) -> LiveKey | None:
        """The key with one of these hashes, if it and its owner are alive now."""
        cache = self._cache
        hears = cache is not None and (not cache.is_shared or cache.is_coherent)
        live = await (self._find if hears else self._read)(mark, hashes)
        return live if live is not None and live.expires_at > self._clock.now() else None

    def now(self) -> datetime:
        """The time of the app's clock."""
        return self._clock.now()

    def forget(self, session: AsyncSession | sqlalchemy.orm.Session, owner_id: UUID | None = None) -> None:
        """Forget the keys of an owner, or all, once this unit of work is committed."""
        if self._cache is not None:
            tag = _EVERY_KEY if owner_id is None else _tag(owner_mark(owner_id))
            after_commit(session, partial(self._cache.invalidate_tags, tag))

    async def _read(self, mark: str, hashes: tuple[str, ...]) -> LiveKey | None:
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(self._wanted(hashes))).one_or_none()
        if row is None:
            return None
        return LiveKey(
            key_id=row.id,
            key_hash=row.key_hash,
            user_id=row.user_id,
            organization_id=row.organization_id,
            email=row.email or "",
            roles=tuple(row.roles or ()),
            membership_role=row.role,
            scopes=tuple(row.scopes),
            rate=row.rate,
            expires_at=row.expires_at,
        )

    def _wanted(self, hashes: Sequence[str]) -> Select[Any]:
        user, key = self._user, ApiKey
        belongs = and_(Membership.user_id == key.user_id, Membership.organization_id == key.organization_id)
        return (
            select(
                key.id, key.key_hash, key.user_id, key.organization_id,
                user.email, user.roles, Membership.role, key.scopes, key.rate, key.expires_at,
            )
            .outerjoin(user, user.id == key.user_id)
            .outerjoin(Membership, belongs)
            .where(
                key.key_hash.in_(hashes),
                key.revoked_at.is_(None),
                key.expires_at > self._clock.now(),
                or_(key.user_id.is_(None), user.is_active),
                or_(key.user_id.is_(None), key.organization_id.is_(None), Membership.id.is_not(None)),
            )
        )  # fmt: skip


def _reader(read: Callable[[str, tuple[str, ...]], Awaitable[LiveKey | None]]) -> Callable[[str, tuple[str, ...]], Any]:
    """A function of its own for each app: what is cached is named by the function."""

    async def live_key(mark: str, hashes: tuple[str, ...]) -> LiveKey | None:
        return await read(mark, hashes)

    return live_key


def _tag(mark: str) -> str:
    return f"auth:keys:{mark}"


def _tags(mark: str, hashes: tuple[str, ...]) -> list[str]:
    return [_tag(mark), _EVERY_KEY]


def _here() -> LiveKeys | None:
    wiring = current_wiring()
    return wiring.get(LiveKeys) if wiring is not None and wiring.has(LiveKeys) else None


def _changed(mapper: Any, connection: Any, row: Any) -> None:
    """Forget the keys of the owner whose key, account, membership or organization this is."""
    live, session = _here(), object_session(row)
    if live is not None and session is not None:
        owner_id = row.user_id if isinstance(row, Membership) else row.owner_id if isinstance(row, ApiKey) else row.id
        live.forget(session, owner_id)


for _kind in (HasAccount, Membership, Organization, ApiKey):
    for _what in ("after_update", "after_delete"):
        event.listen(_kind, _what, _changed, propagate=True)


@event.listens_for(Membership, "after_delete")
def _left(mapper: Any, connection: Connection, membership: Membership) -> None:
    """End the keys of who leaves an organization for it: they would live again with another membership."""
    keys, live = cast(Table, ApiKey.__table__), _here()
    now = live.now() if live is not None else SystemClock().now()
    owned = (keys.c.user_id == membership.user_id, keys.c.organization_id == membership.organization_id)
    ended = update(keys).where(*owned, keys.c.revoked_at.is_(None))
    connection.execute(ended.values(revoked_at=now, revoke_reason="left"))


@event.listens_for(UnitOfWork.sync_session_class, "do_orm_execute")
def _many_changed(state: ORMExecuteState) -> None:
    if not (state.is_update or state.is_delete) or state.bind_mapper is None:
        return
    kinds = HasAccount | Membership | Organization | ApiKey
    says_what = state.execution_options.keys() & SAYS_WHAT_CHANGED
    if issubclass(state.bind_mapper.class_, kinds) and not says_what and (live := _here()) is not None:
        live.forget(state.session)
