"""How the queue in PostgreSQL gets at connections of asyncpg: from the app's pool, and two that it keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from svc_infra.db import AsyncDatabase, _postgres
from svc_infra.db.errors import translated
from svc_infra.errors import UnavailableError

BY_INDEX = "SET enable_seqscan = off"
"""While the table is small PostgreSQL plans to read it whole, and a prepared statement would go on with that plan when
a hundred thousand jobs have come, until the next ANALYZE."""


@dataclass(slots=True)
class _Kept:
    driver: Any
    used_at: float
    busy: bool = False


class PostgresConnections:
    """Connections of asyncpg.

    A process that listens keeps one that listens and claims, and one that finishes jobs: their calls save the way
    through the pool, and are planned for a table that grows.

    Args:
        db: The database, whose pool they come from.
    """

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db
        self._errors: tuple[type[Exception], ...] = (*_postgres.driver_errors(), SQLAlchemyError, OSError)
        self._kept: dict[str, _Kept] = {}
        event.listen(db.engine.sync_engine, "engine_disposed", self._close)

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """Run one statement, which is a transaction: no round trips for BEGIN and COMMIT."""
        async with self.one() as driver:
            return list(await driver.fetch(statement, *values))

    async def fetch_kept(self, purpose: str, statement: str, *values: Any) -> list[Any]:
        """The same on the connection that is kept for this purpose; from the pool, while that is busy or missing."""
        kept = self._kept.get(purpose)
        if kept is None or kept.busy or kept.driver.is_closed():
            return await self.fetch(statement, *values)
        kept.busy = True
        try:
            if monotonic() - kept.used_at > _postgres.PING_AFTER_SECONDS:
                await kept.driver.fetchrow(";", timeout=_postgres.PING_SECONDS)
            rows = list(await kept.driver.fetch(statement, *values))
        except self._errors as error:
            kept.driver.terminate()
            raise self._translated(kept.driver, error) from error
        except BaseException:  # cancelled, while the server may be at it
            kept.driver.terminate()
            raise
        finally:
            kept.busy, kept.used_at = False, monotonic()
        return rows

    async def keep(self, purpose: str) -> None:
        """Have a connection for this purpose; it closes with the database."""
        if not self._has(purpose):
            async with self.one(detached=True) as driver:
                await driver.execute(BY_INDEX)
            if self._has(purpose):  # somebody was faster
                driver.terminate()
            else:
                self._kept[purpose] = _Kept(driver, monotonic())

    async def listen(self, purpose: str, channel: str, heard: Callable[..., None], deaf: Callable[..., None]) -> Any:
        """A new connection for this purpose, which also hears what is told on this channel."""
        async with self.one(detached=True) as driver:
            await driver.execute(BY_INDEX)
            await driver.add_listener(channel, heard)
            driver.add_termination_listener(deaf)
        self._kept[purpose] = _Kept(driver, monotonic())
        return driver

    def _has(self, purpose: str) -> bool:
        kept = self._kept.get(purpose)
        return kept is not None and not kept.driver.is_closed()

    def _close(self, engine: Any) -> None:
        for kept in self._kept.values():
            kept.driver.terminate()
        self._kept.clear()

    @asynccontextmanager
    async def by_index(self) -> AsyncIterator[Any]:
        """A connection and a transaction whose statements are planned for a table that grows."""
        async with self.one() as driver, driver.transaction():
            await driver.execute(BY_INDEX.replace("SET", "SET LOCAL"))
            yield driver

    @asynccontextmanager
    async def one(self, *, detached: bool = False) -> AsyncIterator[Any]:
        """A connection from the pool; one whose user was cancelled or failed is not used again.

        Args:
            detached: It stays open after the block, and out of the pool.
        """
        driver: Any = None
        pool = self._db.engine.pool
        try:
            pooled = await self._db.engine.raw_connection()
            driver = pooled.driver_connection
            try:
                yield driver
                if detached:
                    pooled.detach()
            except BaseException:
                await greenlet_spawn(pooled.invalidate)
                raise
            finally:
                if not detached:  # to a pool that was disposed of meanwhile nothing goes back: nobody would close it
                    await greenlet_spawn(pooled.close if self._db.engine.pool is pool else pooled.invalidate)
        except self._errors as error:
            raise self._translated(driver, error) from error

    def _translated(self, driver: Any, error: Exception) -> Exception:
        if driver is not None and driver.is_closed():
            return UnavailableError("The connection to the database was lost.", retry_after_seconds=1)
        return translated(error)
