"""Migrations: Alembic revisions that lie flat in a folder, applied by whoever comes first, once, all or nothing.

There is no `env.py` and no ini file: a chain of revisions is a folder of `NNNN_name.py` files and the table that
records how far it has been applied. The library's own tables and the application's are two chains.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from svc_infra.db.database import AsyncDatabase
from svc_infra.db.errors import translated
from svc_infra.errors import ConfigurationError, SvcInfraError, UnavailableError

LOCK_WAIT_SECONDS = 300.0
"""Longest wait for another process that is migrating."""

_ADVISORY_LOCK = 0x737663_6D6967  # "svc" "mig"; held in a transaction, so it also works through PgBouncer
_ALEMBIC = threading.Lock()  # `alembic.op` is one object for the whole process: one upgrade at a time may own it
_POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)
logging.getLogger("alembic.runtime").setLevel(logging.WARNING)  # its lines say what the ones here say


@dataclass(frozen=True, slots=True)
class Migrations:
    """A chain of revisions and the table that records how far it has been applied.

    Args:
        directory: The folder of `NNNN_name.py` files.
        version_table: The table; it must differ between the chains of one database.
    """

    directory: Path
    version_table: str


LIBRARY = Migrations(Path(__file__).parent.parent / "migrations", "svc_schema_version")
"""The library's own tables."""


def chains(own: Path | None = None) -> list[Migrations]:
    """The library's chain and, given its folder, the application's own."""
    return [LIBRARY, Migrations(own, "app_schema_version")] if own else [LIBRARY]


async def upgrade(db: AsyncDatabase, migrations: Sequence[Migrations] = (LIBRARY,)) -> list[str]:
    """Apply every pending revision of every chain, in order, in one transaction.

    Any number of processes may call it at once: one migrates, the others wait for it and find nothing to do.
    Statements that PostgreSQL refuses in a transaction (`CREATE INDEX CONCURRENTLY`) cannot be part of a revision.

    Returns:
        The revisions applied now.

    Raises:
        ConfigurationError: A folder is missing, or a chain is forked or unknown to this release.
        SvcInfraError: A revision failed; nothing of this call was applied.
        UnavailableError: The database cannot be reached, or another process migrated for `LOCK_WAIT_SECONDS`.
    """
    chains = [(chain, _script(chain)) for chain in migrations]
    async with _alembic_free(), _exclusive(db) as connection:
        done = [revision for chain in chains for revision in await connection.run_sync(_upgrade, *chain)]
    if done:
        _log.info("migration.finished", extra={"revisions": done, "database": repr(db)})
    return done


async def pending(db: AsyncDatabase, migrations: Sequence[Migrations] = (LIBRARY,)) -> list[str]:
    """The revisions that `upgrade` would apply, in order.

    A database that a newer release has migrated has none: old code keeps running while a new release rolls out.

    Raises:
        ConfigurationError: A folder is missing or a chain is forked.
        UnavailableError: The database cannot be reached.
    """
    found: list[str] = []
    for chain in migrations:
        script = _script(chain)
        applied = await _applied(db, chain)
        if _unknown(script, applied):
            _log.warning("migration.schema_is_newer", extra={"revisions": applied, "table": chain.version_table})
            continue
        found += [step.revision for step in reversed(list(script.iterate_revisions("heads", applied or "base")))]
    return found


async def current(db: AsyncDatabase, migrations: Sequence[Migrations] = (LIBRARY,)) -> list[str]:
    """The newest applied revision of every chain that has any.

    Raises:
        UnavailableError: The database cannot be reached.
    """
    return [revision for chain in migrations for revision in await _applied(db, chain)]


async def _applied(db: AsyncDatabase, chain: Migrations) -> tuple[str, ...]:
    def heads(connection: Connection) -> tuple[str, ...]:
        options = {"version_table": chain.version_table}
        return MigrationContext.configure(connection, opts=options).get_current_heads()

    async with db.session(read_only=True) as session:
        return await (await session.connection()).run_sync(heads)


def _script(chain: Migrations) -> ScriptDirectory:
    return _library() if chain == LIBRARY else _read(chain)


@functools.cache
def _library() -> ScriptDirectory:
    """Read once: a process may start many apps, as tests do, and the library does not change meanwhile."""
    return _read(LIBRARY)


def _read(chain: Migrations) -> ScriptDirectory:
    try:
        script = ScriptDirectory(chain.directory, version_locations=[chain.directory])
        heads = script.get_heads()
    except (CommandError, RevisionError, KeyError) as error:  # KeyError: a revision follows one that is not there
        raise ConfigurationError(f"The migrations in {chain.directory} cannot be read: {error}") from error
    if len(heads) > 1:
        raise ConfigurationError(f"The migrations in {chain.directory} are forked: {', '.join(heads)} must be one.")
    return script


def _unknown(script: ScriptDirectory, revisions: Iterable[str]) -> list[str]:
    known = {step.revision for step in script.walk_revisions()}
    return [revision for revision in revisions if revision not in known]


@asynccontextmanager
async def _alembic_free() -> AsyncIterator[None]:
    while not _ALEMBIC.acquire(blocking=False):  # noqa: ASYNC110  the holder may be in another event loop
        await asyncio.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        _ALEMBIC.release()


@asynccontextmanager
async def _exclusive(db: AsyncDatabase) -> AsyncIterator[AsyncConnection]:
    """A transaction that only one migrator of this database can be in; Alembic finds it begun and leaves it alone."""
    try:
        async with db.engine.connect() as connection:
            if db.dialect == "postgresql":
                async with connection.begin():
                    await _lock_postgres(connection)
                    yield connection
                return
            raw: Any = (await connection.get_raw_connection()).driver_connection
            try:
                # Neither can be set in a transaction. Alembic changes a table by rebuilding it, and with foreign keys
                # on, dropping the old one would delete what refers to it.
                await raw.execute("PRAGMA foreign_keys=OFF")
                await raw.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT_SECONDS * 1000)}")
                async with connection.begin():  # BEGIN IMMEDIATE: the write lock
                    yield connection
            finally:
                await connection.invalidate()  # no one else may get a connection that checks no foreign keys
    except SQLAlchemyError as error:
        raise translated(error) from error


async def _lock_postgres(connection: AsyncConnection) -> None:
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    deadline = asyncio.get_running_loop().time() + LOCK_WAIT_SECONDS
    while not await connection.scalar(select(func.pg_try_advisory_xact_lock(_ADVISORY_LOCK))):
        if asyncio.get_running_loop().time() > deadline:
            raise UnavailableError(f"Another process has been migrating for {LOCK_WAIT_SECONDS:.0f} seconds.")
        await asyncio.sleep(_POLL_SECONDS)


def _upgrade(connection: Connection, chain: Migrations, script: ScriptDirectory) -> list[str]:
    done: list[str] = []
    running = ""

    def steps(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        nonlocal running
        if unknown := _unknown(script, heads):
            raise ConfigurationError(
                f"The database is at revision {', '.join(unknown)}, which this release does not know: "
                "a newer release has migrated it."
            )
        for step in script._upgrade_revs("heads", heads):
            running = step.revision.revision
            _log.info("migration.applying", extra={"revision": running})
            yield step
            done.append(running)

    environment = EnvironmentContext(Config(), script, fn=steps, destination_rev="heads")
    batch = connection.dialect.name == "sqlite"
    with environment:
        environment.configure(connection, version_table=chain.version_table, render_as_batch=batch)
        try:
            environment.run_migrations()
            if batch and done:
                _check_foreign_keys(connection)
        except SvcInfraError:
            raise
        except Exception as error:
            cause = getattr(error, "orig", None) or error
            raise SvcInfraError(f"Migration {running} failed and nothing was applied: {cause}") from error
    return done


def _check_foreign_keys(connection: Connection) -> None:
    broken = {row[0] for row in connection.execute(text("PRAGMA foreign_key_check"))}
    if broken:
        raise SvcInfraError(f"The migration would leave rows without what they refer to in: {', '.join(broken)}.")
