"""Servers and URLs that every test can ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import redis

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate
from tests.servers import postgres, valkey


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL server for each test process; the URL of its administrative database."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """One Valkey server for each test process."""
    with valkey() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database, dropped after the test."""
    with postgres_database(postgres_server) as url:
        yield url


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """An empty database on this server, dropped afterwards."""
    name = f"test_{uuid4().hex}"
    _run_sql(server, f'CREATE DATABASE "{name}"')
    yield server.replace("/postgres?", f"/{name}?")
    _run_sql(server, f'DROP DATABASE "{name}" WITH (FORCE)')


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
async def sqlite_db(sqlite_url: str) -> AsyncIterator[AsyncDatabase]:
    """A SQLite file with the library's tables."""
    async with _migrated(sqlite_url) as database:
        yield database


@pytest.fixture
async def postgres_db(postgres_url: str) -> AsyncIterator[AsyncDatabase]:
    """A PostgreSQL database with the library's tables."""
    async with _migrated(postgres_url) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request: pytest.FixtureRequest) -> AsyncIterator[AsyncDatabase]:
    """Each engine in turn, with the library's tables."""
    async with _migrated(request.getfixturevalue(f"{request.param}_url")) as database:
        yield database


@asynccontextmanager
async def _migrated(url: str) -> AsyncIterator[AsyncDatabase]:
    database = AsyncDatabase(url)
    try:
        await migrate.upgrade(database)
        yield database
    finally:
        await database.dispose()


def _run_sql(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(max_workers=1) as threads:  # the test's own event loop may be running here
        threads.submit(asyncio.run, run()).result()
