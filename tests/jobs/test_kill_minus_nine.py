"""A worker process that is killed in the middle of its work, again and again, on every queue that outlives it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import JobState, RedisJobQueue, SqlJobQueue
from svc_infra.redis import connect
from tests.jobs.effects_app import EFFECTS
from tests.jobs.working import until

JOBS = 1000
KILLS = 3
ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-c", "from svc_infra.cli.jobs import app; app()", "run", "tests.jobs.effects_app:make"]
ENVIRONMENT = {
    **os.environ,
    "APP_ENV": "test",
    "JOBS_DRIVER": "auto",
    "JOBS_LEASE_SECONDS": "1",
    "JOBS_POLL_INTERVAL_SECONDS": "0.05",
    "LOG_LEVEL": "ERROR",
}


@dataclass
class Backend:
    """A queue full of jobs, and how often each has had its effect."""

    queue: SqlJobQueue | RedisJobQueue
    variable: dict[str, str]
    effects: Callable[[], Awaitable[Counter[int]]]

    async def seen(self) -> int:
        """How many effects have happened."""
        return (await self.effects()).total()


@asynccontextmanager
async def sql(url: str) -> AsyncIterator[Backend]:
    db = AsyncDatabase(url)
    await upgrade(db)
    queue = SqlJobQueue(db)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer)"))
        for number in range(JOBS):
            await queue.enqueue("effect", {"number": number}, session=session)

    async def effects() -> Counter[int]:
        async with db.session(read_only=True) as session:
            return Counter((await session.execute(text("SELECT number FROM effects"))).scalars())

    try:
        yield Backend(queue, {"SQL_URL": url}, effects)
    finally:
        await db.dispose()


@asynccontextmanager
async def valkey(url: str) -> AsyncIterator[Backend]:
    async with connect(url) as client:
        queue = RedisJobQueue(client)
        for number in range(JOBS):
            await queue.enqueue("effect", {"number": number})

        async def effects() -> Counter[int]:
            return Counter({int(number): int(count) for number, count in (await client.hgetall(EFFECTS)).items()})

        yield Backend(queue, {"REDIS_URL": url}, effects)


def start(backend: Backend) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*WORKER, "--no-scheduler"], cwd=ROOT, env={**ENVIRONMENT, **backend.variable})


async def kill_at(backend: Backend, count: int) -> None:
    """Run a worker until so many effects have happened, then kill it."""
    worker = start(backend)

    async def reached() -> bool:
        assert worker.poll() is None, f"the worker ended by itself with {worker.returncode}"
        return await backend.seen() >= count

    try:
        await until(reached, seconds=30)
    finally:
        worker.kill()
        assert worker.wait() == -signal.SIGKILL


async def finish(backend: Backend) -> None:
    """Run a worker until nothing is left to do, then stop it as an orchestrator does."""
    worker = start(backend)

    async def done() -> bool:
        assert worker.poll() is None, f"the worker ended by itself with {worker.returncode}"
        counts = (await backend.queue.stats()).counts
        return counts[JobState.READY] + counts[JobState.RUNNING] == 0

    try:
        await until(done, seconds=40)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 10) == 0
    finally:
        worker.kill()


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
async def test_killed_workers_lose_no_job(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    points = sorted(random.sample(range(20, JOBS - 100), KILLS))
    interrupted = []
    async with valkey(url) if kind == "valkey" else sql(url) as backend:
        for point in points:
            await kill_at(backend, point)
            interrupted.append((await backend.queue.stats()).counts[JobState.RUNNING])
        await finish(backend)
        happened = await backend.effects()
        counts = (await backend.queue.stats()).counts
    assert any(interrupted), f"no job was running when the worker was killed at {points}: this shows nothing"
    assert sorted(happened) == list(range(JOBS)), f"killed at {points}"
    assert counts[JobState.SUCCEEDED] == JOBS
    if kind != "valkey":
        twice = [number for number, count in happened.items() if count > 1]
        assert twice == [], f"killed at {points}"
