"""Servers and URLs that every test can ask for."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import redis

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate
from tests.machine import keep_compiled_modules, keep_files_in_memory, trust_nobody
from tests.servers import NO_DISK, postgres, valkey


def pytest_configure() -> None:
    keep_compiled_modules()
    keep_files_in_memory()
    trust_nobody()


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL server for each test process; the URL of its administrative database."""
    with postgres(NO_DISK) as url:
        yield url


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """One Valkey server for each test process."""
    with valkey() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """The name of a database with the library's tables, of which tests get copies."""
    name = "migrated"
    _run(_execute(postgres_server, f"CREATE DATABASE {name}"))
    _run(_migrate(on_server(postgres_server, name)))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the library's tables, of which tests get copies."""
    file = tmp_path_factory.mktemp("template") / "migrated.db"
    _run(_migrate(f"sqlite:///{file}"))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the last to close need not have written all back
    assert [other.name for other in file.parent.iterdir()] == [file.name]
    return file


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database, dropped after the test."""
    with postgres_database(postgres_server) as url:
        yield url


@pytest.fixture
def migrated_postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database with the library's tables, dropped after the test."""
    with postgres_database(postgres_server, postgres_template) as url:
        yield url


@contextmanager
def postgres_database(server: str, template: str = "template1") -> Iterator[str]:
    """A database on this server, at first a copy of another one, which may be empty; dropped afterwards."""
    name = f"test_{uuid4().hex}"
    _run(_execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'))
    yield on_server(server, name)
    _run(_execute(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


def on_server(server: str, database: str) -> str:
    """The URL of a database on the server whose administrative one has the URL that is given."""
    return server.replace("/postgres?", f"/{database}?")


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """An empty Valkey keyspace."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture
def migrated_sqlite_url(sqlite_url: str, sqlite_template: Path) -> str:
    """The SQLite file of `sqlite_url`, with the library's tables."""
    shutil.copyfile(sqlite_template, sqlite_url.removeprefix("sqlite:///"))
    return sqlite_url


@pytest.fixture
async def sqlite_db(migrated_sqlite_url: str) -> AsyncIterator[AsyncDatabase]:
    """A SQLite file with the library's tables."""
    async with opened(migrated_sqlite_url) as database:
        yield database


@pytest.fixture
async def postgres_db(migrated_postgres_url: str) -> AsyncIterator[AsyncDatabase]:
    """A PostgreSQL database with the library's tables."""
    async with opened(migrated_postgres_url) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request: pytest.FixtureRequest) -> AsyncIterator[AsyncDatabase]:
    """Each engine in turn, with the library's tables."""
    async with opened(request.getfixturevalue(f"migrated_{request.param}_url")) as database:
        yield database


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncDatabase]:
    """A database, until the block ends."""
    database = AsyncDatabase(url)
    try:
        yield database
    finally:
        await database.dispose()


async def _migrate(url: str) -> None:
    async with opened(url) as database:
        await migrate.upgrade(database)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    with ThreadPoolExecutor(max_workers=1) as threads:  # the test's own event loop may be running here
        threads.submit(asyncio.run, work).result()
