"""One SQL database: its connections and its units of work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import sqlalchemy.exc as sa
from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from svc_infra._optional import need
from svc_infra.db.errors import translated
from svc_infra.errors import ConfigurationError, UnavailableError

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
    inside the process instead of failing with "database is locked". On PostgreSQL every connection is checked before
    it is used.

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
        pool = {"pool_timeout": pool_timeout}
        if self.dialect == "postgresql":
            need("asyncpg")
            server_settings = {"application_name": "svc-infra"}
            if statement_timeout_seconds is not None:
                server_settings["statement_timeout"] = str(int(statement_timeout_seconds * 1000))
            self._writer = self._reader = create_async_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=max_overflow,
                pool_pre_ping=True,
                connect_args={"server_settings": server_settings},
                **pool,
            )
        else:
            busy = {"connect_args": {"timeout": busy_timeout_seconds}, **pool}
            self._writer = create_async_engine(self.url, pool_size=1, max_overflow=0, **busy)
            _tune_sqlite(self._writer, begin="BEGIN IMMEDIATE")
            if self.url.database in (None, "", ":memory:"):
                self._reader = self._writer
            else:
                Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
                self._reader = create_async_engine(self.url, pool_size=pool_size, max_overflow=max_overflow, **busy)
                _tune_sqlite(self._reader, begin="BEGIN", read_only=True)
        for engine in {self._writer, self._reader}:
            _name_connection_failures(engine)

    @property
    def engine(self) -> AsyncEngine:
        """The engine that writes."""
        return self._writer

    @asynccontextmanager
    async def session(self, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """A unit of work: commits when the block ends, rolls back when it raises or is cancelled.

        A connection is taken at the first statement. On SQLite a writing session holds the database's only write lock
        from its first statement on, so it can never fail for having read before it wrote.

        Args:
            read_only: Refuse writes; on SQLite such sessions run beside each other and beside the writer.

        Raises:
            ConflictError, ValidationError, UnavailableError, DeadlineExceededError: What the database refused.
        """
        session = AsyncSession(self._reader if read_only else self._writer, expire_on_commit=False)
        try:
            if read_only and self.dialect == "postgresql":
                await session.connection(execution_options={"postgresql_readonly": True})
            yield session
            await session.commit()
        except sa.SQLAlchemyError as error:
            raise translated(error) from error
        finally:
            await asyncio.shield(session.close())

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
        return f"AsyncDatabase({self.url.render_as_string(hide_password=True)!r})"


def _parsed(url: str) -> tuple[URL, DialectName]:
    try:
        parsed = make_url(url)
        dialect, driver = _DRIVERS[parsed.drivername]
    except (sa.ArgumentError, KeyError, ValueError):
        scheme = url.partition("://")[0]
        raise ConfigurationError(
            f"SQL_URL begins with {scheme!r}, which is no database that svc-infra speaks: "
            "use sqlite:///file.db or postgresql://user:password@host/name."
        ) from None
    return parsed.set(drivername=driver), dialect


def _tune_sqlite(engine: AsyncEngine, *, begin: str, read_only: bool = False) -> None:
    pragmas = ["journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"]
    if read_only:
        pragmas.append("query_only=ON")

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions; the listener below does
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _name_connection_failures(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return dialect.connect(*args, **kwargs)
        except OSError as error:
            raise UnavailableError("The database cannot be reached.", retry_after_seconds=1) from error
