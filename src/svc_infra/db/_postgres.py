"""PostgreSQL through asyncpg."""

from __future__ import annotations

from time import monotonic
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from svc_infra._optional import need
from svc_infra.db.errors import translated
from svc_infra.db.pool import MeasuredPool
from svc_infra.errors import ConfigurationError, UnavailableError

CONNECT_SECONDS = 10.0
"""Longest wait for a new connection."""
PING_AFTER_SECONDS = 1.0
"""A connection that was idle for longer is asked whether it lives before it is used."""
PING_SECONDS = 5.0
"""Longest wait for its answer."""


def engines(
    url: URL, *, pool_size: int, max_overflow: int, pool_timeout: float, statement_timeout_seconds: float | None
) -> tuple[AsyncEngine, AsyncEngine]:
    """The engine that writes and the one whose transactions are read-only; both share one pool."""
    need("asyncpg")
    if sslmode := url.query.get("sslmode"):  # libpq's name, which hosts print in the URLs that they hand out
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": sslmode})
    server_settings = {"application_name": "svc-infra"}
    if statement_timeout_seconds is not None:
        server_settings["statement_timeout"] = str(int(statement_timeout_seconds * 1000))
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=pool_timeout,
        poolclass=MeasuredPool,
        connect_args={"timeout": CONNECT_SECONDS, "server_settings": server_settings},
    )
    _name_failures(engine)
    _ping_when_idle(engine)
    return engine, engine.execution_options(postgresql_readonly=True)


def driver_errors() -> tuple[type[Exception], ...]:
    """What asyncpg raises."""
    asyncpg = need("asyncpg")
    return (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def _name_failures(engine: AsyncEngine) -> None:
    place = f"{engine.url.host or engine.url.query.get('host', 'localhost')}/{engine.url.database}"

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return dialect.connect(*args, **kwargs)
        except OSError as error:
            raise UnavailableError(f"The database at {place} cannot be reached.", retry_after_seconds=1) from error
        except dialect.dbapi.Error as error:
            raise translated(error, place=place) from error
        except TypeError as error:
            raise ConfigurationError(f"SQL_URL has an option that asyncpg does not know: {error}.") from error


def _ping_when_idle(engine: AsyncEngine) -> None:
    """Like SQLAlchemy's pre-ping, with one round trip instead of three, bounded, and none for a busy connection."""
    lost: tuple[type[Exception], ...] = (OSError, *driver_errors())

    @event.listens_for(engine.sync_engine, "checkin")
    def checked_in(dbapi_connection: Any, record: Any) -> None:
        record.info["idle_since"] = monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def checked_out(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is None:
            return
        if dbapi_connection.driver_connection.is_closed():
            raise InvalidatePoolError
        if monotonic() - idle_since > PING_AFTER_SECONDS:
            try:
                dbapi_connection.run_async(lambda driver: driver.fetchrow(";", timeout=PING_SECONDS))
            except lost as error:
                raise InvalidatePoolError from error
