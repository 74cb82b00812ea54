"""Wires the room into an app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.idempotency._redis import RedisIdempotencyStore
from svc_infra.idempotency._sql import SqlIdempotencyStore
from svc_infra.idempotency.http import check_routes, use_route
from svc_infra.idempotency.store import IdempotencyStore
from svc_infra.types import Clock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

PURGE_BATCH_KEYS = 1000
PURGE_LIMIT_BATCHES = 100  # in one run

_PART = "idempotency"

_log = logging.getLogger(__name__)


def add_idempotency(app: FastAPI, *, store: IdempotencyStore | None = None) -> None:
    """Let routes of an app declare `Idempotent()`. A second call changes nothing.

    Routes that `@app.post` and its like declare from now on can; those of an `APIRouter` when it was made with
    `route_class=IdempotentRoute`. Answers are kept in the app's database, or in Redis where there is none
    (`IDEMPOTENCY_STORE`); what is older than `IDEMPOTENCY_TTL_SECONDS` is deleted.

    Args:
        app: The app; its settings are `IDEMPOTENCY_*`. The SQL store needs `add_db`, called before or after.
        store: Instead of the one that the settings ask for; whoever made it closes it.

    Raises:
        ConfigurationError: At start-up: there is neither a database nor a `REDIS_URL`, or `Idempotent()` is declared
            where it cannot work.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    use_route(app)

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        check_routes(app)
        made = store or _store_of(wiring)
        wiring.provide(IdempotencyStore, made)
        purging = asyncio.create_task(
            _purge(made, wiring.settings.idempotency.purge_interval_seconds), name="idempotency"
        )
        try:
            yield
        finally:
            purging.cancel()
            await asyncio.wait({purging})
            if store is None:
                await made.close()

    wiring.add(Part(_PART, run, check=lambda: wiring.get(IdempotencyStore).ping(), after=("db",)))


def _store_of(wiring: Wiring) -> IdempotencyStore:
    settings, url = wiring.settings.idempotency, wiring.settings.redis.url
    has_db = wiring.has(AsyncDatabase)
    driver = settings.store if settings.store != "auto" else "sql" if has_db or url is None else "redis"
    lease, ttl = settings.lease_seconds, settings.ttl_seconds
    if driver == "sql":
        if not has_db:
            raise ConfigurationError("Idempotency keys need a database or Redis: call add_db(app), or set REDIS_URL.")
        clock = wiring.get(Clock) if wiring.has(Clock) else None
        return SqlIdempotencyStore(wiring.get(AsyncDatabase), lease_seconds=lease, ttl_seconds=ttl, clock=clock)
    if url is None:
        raise ConfigurationError("IDEMPOTENCY_STORE is redis, but there is no REDIS_URL: set it.")
    return RedisIdempotencyStore(url, lease_seconds=lease, ttl_seconds=ttl)


async def _purge(store: IdempotencyStore, interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            for _ in range(PURGE_LIMIT_BATCHES):
                if await store.purge(limit=PURGE_BATCH_KEYS) < PURGE_BATCH_KEYS:
                    break
        except SvcInfraError as error:  # the next run finds what this one left
            _log.warning("idempotency.purge_failed", exc_info=error)
