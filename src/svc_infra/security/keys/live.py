"""Which keys are alive, remembered for as long as nothing about them, their owners or the owners' memberships changes.

A key names its owner by a mark, so that all keys of an owner are forgotten at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import sqlalchemy.orm
from sqlalchemy import Connection, Select, Table, and_, event, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cache import Cache
from svc_infra.db import AsyncDatabase
from svc_infra.security.keys.form import owner_mark
from svc_infra.security.keys.models import ApiKey
from svc_infra.security.models import HasAccount, Membership, Organization
from svc_infra.security.remembered import Remembered, forget_changes
from svc_infra.types import Clock, SystemClock


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


class LiveKeys(Remembered[LiveKey]):
    """Finds keys that are alive, by one indexed read, or none.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        cache: Where they are remembered; None reads the database each time.
        ttl_seconds: For how long at most.
        clock: Where the time comes from.
    """

    everything = "auth:keys"

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        *,
        cache: Cache | None = None,
        ttl_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(_reader(self._read), LiveKey, tags=_tags, cache=cache, ttl_seconds=ttl_seconds, clock=clock)
        self._db = db
        self._user = user_model

    async def find(self, mark: str, hashes: tuple[str, ...]) -> LiveKey | None:
        """The key with one of these hashes, if it and its owner are alive now."""
        return await self.found(mark, hashes)

    def forget(self, session: AsyncSession | sqlalchemy.orm.Session, owner_id: UUID) -> None:
        """Forget the keys of an owner, once this unit of work is committed."""
        self.forget_tag(session, _tag_of(owner_id))

    async def _read(self, hashes: tuple[str, ...]) -> LiveKey | None:
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
                key.expires_at > self.now(),
                or_(key.user_id.is_(None), user.is_active),
                or_(key.user_id.is_(None), key.organization_id.is_(None), Membership.id.is_not(None)),
            )
        )  # fmt: skip


def _reader(
    read: Callable[[tuple[str, ...]], Awaitable[LiveKey | None]],
) -> Callable[[str, tuple[str, ...]], Awaitable[LiveKey | None]]:
    async def live_key(mark: str, hashes: tuple[str, ...]) -> LiveKey | None:
        return await read(hashes)

    return live_key


def _tag(mark: str) -> str:
    return f"{LiveKeys.everything}:{mark}"


def _tag_of(owner_id: UUID) -> str:
    return _tag(owner_mark(owner_id))


def _tags(mark: str, hashes: tuple[str, ...]) -> list[str]:
    return [_tag(mark), LiveKeys.everything]


forget_changes(
    LiveKeys,
    {
        HasAccount: lambda account: _tag_of(account.id),
        Organization: lambda organization: LiveKeys.everything,  # with it go the keys of members that are bound to it
        Membership: lambda membership: _tag_of(membership.user_id),
        ApiKey: lambda key: _tag_of(key.owner_id),
    },
)


@event.listens_for(Membership, "after_delete")
def _left(mapper: Any, connection: Connection, membership: Membership) -> None:
    """End the keys of who leaves an organization for it: they would live again with another membership."""
    keys, live = cast(Table, ApiKey.__table__), LiveKeys.here()
    now = live.now() if live is not None else SystemClock().now()
    owned = (keys.c.user_id == membership.user_id, keys.c.organization_id == membership.organization_id)
    ended = update(keys).where(*owned, keys.c.revoked_at.is_(None))
    connection.execute(ended.values(revoked_at=now, revoke_reason="left"))
