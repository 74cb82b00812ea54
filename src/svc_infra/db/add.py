"""Gives an app its database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svc_infra.db.database import AsyncDatabase
from svc_infra.db.inbox import Inbox
from svc_infra.db.outbox import Outbox
from svc_infra.db.relay import OutboxRelay
from svc_infra.db.sql import migrate
from svc_infra.db.unit_of_work import after_commit
from svc_infra.errors import MigrationRequiredError, UnavailableError
from svc_infra.obs.pools import engines_of
from svc_infra.types import AfterCommit
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_db(
    app: FastAPI, *, url: str | None = None, migrations: Path | None = None, database: AsyncDatabase | None = None
) -> None:
    """Share one database, its outbox and inbox with every room of the app.

    At start the schema is brought up to date in local and test (`SQL_MIGRATE_ON_START` decides elsewhere); otherwise
    the app refuses to start while revisions are pending. The outbox is relayed when a room has registered a topic.

    Args:
        app: The app; a second call changes nothing.
        url: Instead of the setting `SQL_URL`.
        migrations: The folder of the application's own revisions, applied after the library's.
        database: Instead of a new one; whoever made it closes it.
    """
    wiring = wiring_of(app)
    if wiring.has(AsyncDatabase):
        return
    db = database or _from_settings(wiring, url)
    relay = OutboxRelay(db)
    wiring.provide(AsyncDatabase, db)
    engines_of(wiring).watch(db.engines)
    wiring.provide(OutboxRelay, relay)
    wiring.provide(Outbox, Outbox(wake=relay.wake))
    wiring.provide(Inbox, Inbox())
    wiring.provide(AfterCommit, after_commit)

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        try:
            await _prepare(db, wiring, migrations)
            yield
        finally:
            if database is None:
                await db.dispose()

    relaying = _Relaying(relay, wiring)
    wiring.add(Part("db", connected, check=db.ping))
    # It hands messages to the jobs' queue, where there is one: it starts after the queue and stops before it.
    wiring.add(Part("outbox", relaying.run, check=relaying.check, after=("db", "jobs")))


def _from_settings(wiring: Wiring, url: str | None) -> AsyncDatabase:
    sql = wiring.settings.sql
    return AsyncDatabase(
        url or sql.url,
        pool_size=sql.pool_size,
        max_overflow=sql.max_overflow,
        pool_timeout=sql.pool_timeout_seconds,
        statement_timeout_seconds=sql.statement_timeout_seconds,
    )


async def _prepare(db: AsyncDatabase, wiring: Wiring, own: Path | None) -> None:
    chains = migrate.chains(own)
    migrate_on_start = wiring.settings.sql.migrate_on_start
    if wiring.settings.environment.is_trusted if migrate_on_start is None else migrate_on_start:
        await migrate.upgrade(db, chains)
    elif pending := await migrate.pending(db, chains):
        option = f" --migrations {own}" if own else ""
        raise MigrationRequiredError(
            f"The database lacks {', '.join(pending)}: run `svc-infra sql upgrade{option}` before this release."
        )


class _Relaying:
    """The relay's task, while the app runs."""

    def __init__(self, relay: OutboxRelay, wiring: Wiring) -> None:
        self._relay = relay
        self._wiring = wiring
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Any]:
        if not self._relay.topics:
            yield
            return
        stop = asyncio.Event()
        with self._wiring.active():
            self._task = asyncio.create_task(self._relay.run(stop), name="outbox")
        try:
            yield
        finally:
            stop.set()
            await self._task

    async def check(self) -> None:
        if self._task is not None and self._task.done():
            cause = None if self._task.cancelled() else self._task.exception()
            raise UnavailableError("The outbox is not being relayed.") from cause
