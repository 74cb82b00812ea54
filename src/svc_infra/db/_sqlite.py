"""SQLite: one connection that writes, many that read, in WAL mode."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import ref

import aiosqlite
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from svc_infra.db.errors import translated
from svc_infra.db.pool import MeasuredPool
from svc_infra.errors import ConfigurationError, ValidationError

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",  # readers and the writer do not wait for each other
    "PRAGMA synchronous=FULL",  # a commit survives a power cut
    "PRAGMA foreign_keys=ON",
    f"PRAGMA journal_size_limit={64 * 1024 * 1024}",  # bytes of the log that are kept after it was written back
)
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_log = logging.getLogger(__name__)


class _Connection(sqlite3.Connection):
    """Knows its open cursors: each may hold a lock, and with its traceback a cancellation may hold a cursor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open_cursors: set[ref[sqlite3.Cursor]] = set()

    def cursor(self, factory: Any = None) -> Any:
        """Called by `execute` too."""
        cursor = super().cursor(_Cursor)
        self.open_cursors.add(ref(cursor, self.open_cursors.discard))
        return cursor

    def close_cursors(self) -> None:
        """In the driver's thread."""
        for one in list(self.open_cursors):
            if (cursor := one()) is not None:
                cursor.close()

    def give_up(self) -> None:
        """Roll back, in the driver's thread, whatever was interrupted.

        While a cursor stands between two of its rows, an interrupt stays in force (sqlite.org/c3ref/interrupt.html) and
        would end the rollback too.
        """
        try:
            self.close_cursors()
            self.rollback()
        except sqlite3.Error:
            _log.exception("db.rollback_failed")  # nobody waits for this; closing the connection comes next


class _Cursor(sqlite3.Cursor):
    """Tells its connection when it is closed."""

    connection: _Connection

    def close(self) -> None:
        """It holds nothing more."""
        self.connection.open_cursors.discard(ref(self))
        super().close()


def engines(
    url: URL, *, pool_size: int, max_overflow: int, pool_timeout: float, busy_timeout_seconds: float
) -> tuple[AsyncEngine, AsyncEngine]:
    """The engine that writes and the one that reads; the same one for a database in memory."""
    if url.query:
        raise ConfigurationError(
            f"SQL_URL gives SQLite the options {', '.join(sorted(url.query))}; it takes a path only: sqlite:///file.db."
        )
    in_memory = url.database in (None, "", ":memory:")
    if in_memory:
        url = url.set(database=f"file:/{uuid4().hex}", query={"vfs": "memdb", "uri": "true"})
    else:
        _make_folder(Path(str(url.database)))
    options: dict[str, Any] = {
        "connect_args": {
            "timeout": busy_timeout_seconds,
            "isolation_level": None,
            "async_creator_fn": _opened,
            "factory": _Connection,
        },
        "json_serializer": _written,
        "pool_timeout": pool_timeout,
        "poolclass": MeasuredPool,
        "pool_reset_on_return": None,
    }
    writer = create_async_engine(url, pool_size=1, max_overflow=0, **options)
    if in_memory:
        _keep_in_memory(writer)  # before it connects
    _tune(writer, begin="BEGIN IMMEDIATE")
    if in_memory:
        return writer, writer
    reader = create_async_engine(url, pool_size=pool_size, max_overflow=max_overflow, **options)
    _tune(reader, begin="BEGIN", pragmas=("PRAGMA query_only=ON",))
    return writer, reader


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder of the SQLite file {file} cannot be made: {error.strerror}; check SQL_URL."
        ) from error


async def _opened(*args: Any, **kwargs: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*args, **kwargs)
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        await asyncio.to_thread(connection._thread.join)  # it still reports to this event loop, which may end now
        raise


def _written(value: object) -> str:
    """A value as JSON that PostgreSQL's `jsonb` would take too."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)  # half a character fails on its way to the driver
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        raise ValueError("A text holds the character NUL.")
    return text


def _tune(engine: AsyncEngine, *, begin: str, pragmas: tuple[str, ...] = ()) -> None:
    file = engine.url.database
    script = ";".join([*_PRAGMAS, *pragmas])

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            connection = dialect.connect(*args, **kwargs)
            try:
                connection.run_async(lambda driver: driver.executescript(script))
            except BaseException:
                connection.terminate()
                raise
        except sqlite3.Error as error:
            raise translated(error, place=str(file)) from error
        return connection

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        # Straight to the driver: each step of a SQLAlchemy cursor is one more trip to the driver's thread.
        driver: Any = connection.connection.dbapi_connection
        try:
            driver.run_async(lambda driver: driver.execute(begin))
        except asyncio.CancelledError:
            connection.invalidate()  # its thread may still begin the transaction
            raise

    @event.listens_for(engine.sync_engine, "reset")
    def reset(dbapi_connection: Any, record: Any, state: Any) -> None:
        if state.terminate_only:
            return
        driver = dbapi_connection.driver_connection
        if driver.in_transaction:
            dbapi_connection.rollback()
        if driver._connection.open_cursors:  # of a stream that nobody read to its end: the next user would see old rows
            dbapi_connection.run_async(lambda driver: driver._execute(driver._connection.close_cursors))

    @event.listens_for(engine.sync_engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, OverflowError | UnicodeError):  # Python's own: the value never got to the driver
            raise ValidationError("A value has the wrong form or is out of range.") from error

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def execute(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        # SQLite would store it, and the same request would fail on PostgreSQL, whose texts cannot hold it.
        rows = parameters if many and isinstance(parameters, list) else [parameters]  # one flat row may stand for many
        for row in rows:
            for value in row.values() if isinstance(row, dict) else row:
                if isinstance(value, str) and "\0" in value:
                    raise StatementError("NUL", None, None, ValueError("A text holds the character NUL."))

    @event.listens_for(engine.sync_engine, "invalidate")
    def given_up(dbapi_connection: Any, record: Any, error: BaseException | None) -> None:
        # The driver's thread would run a cancelled statement to its end; its cursor the traceback of the cancellation
        # may hold for long.
        driver = dbapi_connection.driver_connection
        if driver._connection is not None:
            driver._connection.interrupt()
            driver._tx.put_nowait((None, driver._connection.give_up))


def _keep_in_memory(engine: AsyncEngine) -> None:
    """Hold a second connection open: SQLAlchemy drops one that was cancelled, and with the last one goes the data."""
    held: list[sqlite3.Connection] = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def hold(dialect: Any, record: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        if not held:
            held.append(sqlite3.connect(args[0], uri=True, check_same_thread=False))

    @event.listens_for(engine.sync_engine, "engine_disposed")
    def release(disposed: Any) -> None:
        while held:
            held.pop().close()
