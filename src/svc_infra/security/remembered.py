"""What every request asks and what changes rarely, remembered for as long as nothing about it changes.

What was read is kept in the app's cache and forgotten by every process right after the commit of a transaction that
changes any of it, whoever makes the change: the services of this room, an ORM object, or an ORM statement over many of
them. Only SQL that bypasses the ORM is not seen; it is effective after `AUTH_TOKEN_CACHE_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import sqlalchemy.orm
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, object_session

from svc_infra.cache import Cache, cached
from svc_infra.db import after_commit
from svc_infra.db.unit_of_work import UnitOfWork
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import current_wiring

SAYS_WHAT_CHANGED = {"svc_infra_forgets": True}
"""Execution options of a statement whose caller forgets what it changes; any other one makes everything forgotten."""


class Alive(Protocol):
    """Something that is alive until some time."""

    @property
    def expires_at(self) -> datetime:
        """When it ends by itself."""
        ...


T = TypeVar("T", bound=Alive)


class Remembered(Generic[T]):
    """Finds what is alive.

    Args:
        read: Reads it. A function of this object's own, as what is remembered is named by it; plain arguments are named
            the fastest.
        kind: What it gives.
        tags: What is forgotten together, by the same arguments; `everything` among them.
        cache: Where it is remembered; None reads each time.
        ttl_seconds: For how long at most.
        clock: Where the time comes from.
    """

    everything: ClassVar[str]
    """The tag of all of it."""

    def __init__(
        self,
        read: Callable[..., Awaitable[T | None]],
        kind: type[T],
        *,
        tags: Callable[..., list[str]],
        cache: Cache | None,
        ttl_seconds: float,
        clock: Clock | None,
    ) -> None:
        self._cache = cache
        self._clock = clock or SystemClock()
        self._read_anew = self._read_once = read
        if cache is not None:
            self._read_once = cached(
                ttl_seconds, cache=cache, tags=tags, by_tenant=False, negative_ttl=0, early=0.0, kind=kind | None
            )(read)

    @classmethod
    def here(cls) -> Self | None:
        """That of the app whose request, job or script runs here."""
        wiring = current_wiring()
        return wiring.get(cls) if wiring is not None and wiring.has(cls) else None

    def now(self) -> datetime:
        """The time of the app's clock."""
        return self._clock.now()

    async def found(self, *names: Any) -> T | None:
        """What has these names, if it is alive now; a process that does not hear of changes reads it each time."""
        cache = self._cache
        hears = cache is not None and (not cache.is_shared or cache.is_coherent)
        live = await (self._read_once if hears else self._read_anew)(*names)
        return live if live is not None and live.expires_at > self._clock.now() else None

    def forget_tag(self, session: AsyncSession | sqlalchemy.orm.Session, tag: str) -> None:
        """Forget what has this tag once this unit of work is committed."""
        if self._cache is not None:
            after_commit(session, partial(self._cache.invalidate_tags, tag))


def forget_changes(kind: type[Remembered[Any]], tag_of: Mapping[type[Any], Callable[[Any], str]]) -> None:
    """Have the app that runs forget what changes.

    Args:
        kind: What remembers it.
        tag_of: By each mapped class that is read: the tag of what an object of it belongs to.
    """

    def one_changed(tag: Callable[[Any], str], mapper: Any, connection: Any, row: Any) -> None:
        live, session = kind.here(), object_session(row)
        if live is not None and session is not None:
            live.forget_tag(session, tag(row))

    for model, tag in tag_of.items():
        for what in ("after_update", "after_delete"):
            event.listen(model, what, partial(one_changed, tag), propagate=True)

    @event.listens_for(UnitOfWork.sync_session_class, "do_orm_execute")
    def many_changed(state: ORMExecuteState) -> None:
        if not (state.is_update or state.is_delete) or state.bind_mapper is None:
            return
        says_what = state.execution_options.keys() & SAYS_WHAT_CHANGED
        if issubclass(state.bind_mapper.class_, tuple(tag_of)) and not says_what and (live := kind.here()) is not None:
            live.forget_tag(state.session, kind.everything)
