"""Which logins are alive, remembered for as long as nothing about them changes.

A login, an account and its roles are read by every request, and changed rarely. What was read is kept in the app's
cache and forgotten by every process right after the commit of a transaction that changes any of it, whoever makes the
change: the services of this room, an ORM object, or an ORM statement over many of them. Only SQL that bypasses the ORM
is not seen; it is effective after `AUTH_TOKEN_CACHE_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy.orm
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, object_session

from svc_infra.cache import Cache, cached
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.db.unit_of_work import UnitOfWork
from svc_infra.security.methods import MULTIPLE
from svc_infra.security.models import HasAccount, Session
from svc_infra.security.sessions.second_step import SecondFactors
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import current_wiring

SAYS_WHAT_CHANGED = {"svc_infra_forgets": True}
"""Execution options of a statement whose caller forgets what it changes; any other one makes everything forgotten."""

_EVERYTHING = "auth:everything"


@dataclass(frozen=True, slots=True)
class Live:
    """A login that has not ended, and its active account."""

    user_id: UUID
    email: str
    roles: tuple[str, ...]
    expires_at: datetime
    authenticated_at: datetime
    methods: tuple[str, ...]
    lacks_second_factor: bool


class LiveSessions:
    """Finds logins that are alive.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        second_factors: Knows whose login needs a second factor; None where nobody's does.
        cache: Where they are remembered; None reads the database each time.
        ttl_seconds: For how long at most.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        *,
        second_factors: SecondFactors | None = None,
        cache: Cache | None = None,
        ttl_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._user = user_model
        self._second_factors = second_factors
        self._cache = cache
        self._clock = clock or SystemClock()
        self._remembered: Callable[[str, str], Awaitable[Live | None]] | None = None
        if cache is not None:
            self._remembered = cached(
                ttl_seconds, cache=cache, tags=_tags, by_tenant=False, negative_ttl=0, early=0.0, kind=Live | None
            )(_reader(self._read))

    async def find(self, session_id: UUID, user_id: UUID) -> Live | None:
        """The login, if it and its account are alive now."""
        cache = self._cache
        if cache is None or self._remembered is None or (cache.is_shared and not cache.is_coherent):
            live = await self._read(session_id, user_id)
        else:
            live = await self._remembered(session_id.hex, user_id.hex)
        return live if live is not None and live.expires_at > self._clock.now() else None

    def forget(
        self,
        session: AsyncSession | sqlalchemy.orm.Session,
        *,
        user_id: UUID | None = None,
        session_id: UUID | None = None,
    ) -> None:
        """Forget a login, all of an account, or everything, once this unit of work is committed."""
        if self._cache is None:
            return
        kind = "user" if user_id is not None else "session"
        one = user_id if user_id is not None else session_id
        tag = _EVERYTHING if one is None else _tag(kind, one.hex)
        after_commit(session, partial(self._cache.invalidate_tags, tag))

    async def _read(self, session_id: UUID, user_id: UUID) -> Live | None:
        user = self._user
        wanted = (
            select(user.id, user.email, user.roles, Session.expires_at, Session.authenticated_at, Session.methods)
            .join(Session, Session.user_id == user.id)
            .where(
                Session.id == session_id,
                Session.revoked_at.is_(None),
                Session.expires_at > self._clock.now(),
                user.id == user_id,
                user.is_active,
            )
        )
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(wanted)).one_or_none()
            if row is None:
                return None
            methods, roles = tuple(row.methods.split()), tuple(row.roles)
            lacks = (
                self._second_factors is not None
                and MULTIPLE not in methods
                and await self._second_factors.is_required(session, row.id, roles)
            )
        return Live(row.id, row.email, roles, row.expires_at, row.authenticated_at, methods, lacks)


def _reader(read: Callable[[UUID, UUID], Awaitable[Live | None]]) -> Callable[[str, str], Any]:
    """A function whose arguments are plain texts, which are named the fastest."""

    async def live_login(session_id: str, user_id: str) -> Live | None:
        return await read(UUID(session_id), UUID(user_id))

    return live_login


def _tag(kind: str, identifier: str) -> str:
    return f"auth:{kind}:{identifier}"


def _tags(session_id: str, user_id: str) -> list[str]:
    return [_tag("session", session_id), _tag("user", user_id), _EVERYTHING]


def _here() -> LiveSessions | None:
    wiring = current_wiring()
    return wiring.get(LiveSessions) if wiring is not None and wiring.has(LiveSessions) else None


@event.listens_for(HasAccount, "after_update", propagate=True)
@event.listens_for(HasAccount, "after_delete", propagate=True)
def _account_changed(mapper: Any, connection: Any, account: HasAccount) -> None:
    live, session = _here(), object_session(account)
    if live is not None and session is not None:
        live.forget(session, user_id=account.id)


@event.listens_for(Session, "after_update")
@event.listens_for(Session, "after_delete")
def _session_changed(mapper: Any, connection: Any, login: Session) -> None:
    live, session = _here(), object_session(login)
    if live is not None and session is not None:
        live.forget(session, session_id=login.id)


@event.listens_for(UnitOfWork.sync_session_class, "do_orm_execute")
def _many_changed(state: ORMExecuteState) -> None:
    if not (state.is_update or state.is_delete) or state.bind_mapper is None:
        return
    says_what = state.execution_options.keys() & SAYS_WHAT_CHANGED
    if issubclass(state.bind_mapper.class_, HasAccount | Session) and not says_what and (live := _here()) is not None:
        live.forget(state.session)
