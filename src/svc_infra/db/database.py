"""One SQL database: its connections and its units of work."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import sqlalchemy.exc as sa
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.db import _postgres, _sqlite
from svc_infra.db.errors import translated
from svc_infra.db.unit_of_work import UnitOfWork, finished
from svc_infra.errors import ConfigurationError

DialectName = Literal["sqlite", "postgresql"]

_DRIVERS: dict[str, tuple[DialectName, str]] = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "sqlite+aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgres": ("postgresql", "postgresql+asyncpg"),
    "postgresql": ("postgresql", "postgresql+asyncpg"),
    "postgresql+asyncpg": ("postgresql", "postgresql+asyncpg"),
}


class AsyncDatabase:
    """A pool of connections to SQLite or PostgreSQL that hands out units of work.

    On SQLite (WAL, foreign keys on) one connection writes and `pool_size` connections read, so writers queue fairly
    inside the process instead of failing with "database is locked". On PostgreSQL a connection that was idle is
    checked before it is used.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory) or `postgresql://user:password@host/name`.
        pool_size: Connections kept open.
        max_overflow: Connections opened beyond that under load.
        pool_timeout: Seconds to wait for a free connection before `UnavailableError`.
        statement_timeout_seconds: Longest run of one statement on PostgreSQL; None for the server's own setting.
        busy_timeout_seconds: Longest wait for another process's write on SQLite.

    Raises:
        ConfigurationError: The URL cannot be read or names another kind of database.
        MissingExtraError: PostgreSQL is asked for and asyncpg is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        max_overflow: int = 20,
        pool_timeout: float = 30,
        statement_timeout_seconds: float | None = None,
        busy_timeout_seconds: float = 10,
    ) -> None:
        self.url, self.dialect = _parsed(url)
        self._errors: tuple[type[Exception], ...]
        if self.dialect == "postgresql":
            self._writer, self._reader = _postgres.engines(
                self.url,
                pool_size=pool_size,
                max_overflow=max_overflow,
                pool_timeout=pool_timeout,
                statement_timeout_seconds=statement_timeout_seconds,
            )
            self._errors = (sa.SQLAlchemyError, *_postgres.driver_errors())
        else:
            self._writer, self._reader = _sqlite.engines(
                self.url,
                pool_size=pool_size,
                max_overflow=max_overflow,
                pool_timeout=pool_timeout,
                busy_timeout_seconds=busy_timeout_seconds,
            )
            self._errors = (sa.SQLAlchemyError, sqlite3.Error)

    @property
    def engine(self) -> AsyncEngine:
        """The engine that writes."""
        return self._writer

    @property
    def engines(self) -> dict[str, AsyncEngine]:
        """Every engine that has connections of its own, by the name that metrics give it."""
        own_reader = self._reader.pool is not self._writer.pool
        return {"db": self._writer, **({"db_reader": self._reader} if own_reader else {})}

    @asynccontextmanager
    async def session(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """A unit of work: commits when the block ends, rolls back when it raises or is cancelled.

        A connection is taken at the first statement. On SQLite a writing session holds the database's only write lock
        from its first statement on, so it can never fail for having read before it wrote; one inside another waits
        for itself, until `pool_timeout`.

        Args:
            read_only: Refuse writes; on SQLite such sessions run beside each other and beside the writer.

        Raises:
            ConflictError, ValidationError, UnavailableError, DeadlineExceededError: What the database refused.
        """
        session = UnitOfWork(
            self._reader if read_only else self._writer, expire_on_commit=False, close_resets_only=False
        )
        try:
            yield session
            if session.has_work:
                await finished(session.commit())
        except self._errors as error:
            raise translated(error) from error
        finally:
            if session.in_transaction():
                await finished(session.abandon())
            else:
                session.sync_session.close()

    async def ping(self) -> None:
        """Ask the database for an answer.

        Raises:
            UnavailableError: It gives none.
        """
        async with self.session(read_only=True) as session:
            await session.execute(text("SELECT 1"))

    async def dispose(self) -> None:
        """Close every connection."""
        for engine in {self._writer, self._reader}:
            await engine.dispose()

    def __repr__(self) -> str:
        return f"AsyncDatabase({self.url.set(query={}).render_as_string(hide_password=True)!r})"


def _parsed(url: str) -> tuple[URL, DialectName]:
    try:
        parsed = make_url(url)
        dialect, driver = _DRIVERS[parsed.drivername]
    except (sa.ArgumentError, KeyError, ValueError):
        scheme, separator, _ = url.partition("://")
        begins = f"begins with {scheme!r}, which" if separator else "has no '://' and"
        raise ConfigurationError(
            f"SQL_URL {begins} is no database that svc-infra speaks: "
            "use sqlite:///file.db or postgresql://user:password@host/name."
        ) from None
    return parsed.set(drivername=driver), dialect
