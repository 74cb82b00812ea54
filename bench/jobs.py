"""How fast jobs are stored and run: enqueue/s and processed/s of one worker process, on every backend.

Jobs do nothing, so what is measured is the queue. PostgreSQL and Valkey come from wheels and run on this machine, with
their default durability: PostgreSQL and SQLite sync each commit, Valkey keeps everything in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import uvloop

from bench.report import table, write
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import InMemoryJobQueue, JobQueue, RedisJobQueue, SqlJobQueue, Worker, task
from tests.servers import postgres, valkey

CONCURRENCY = 50
ENQUEUERS = 20


class Done:
    """Set when the last job has run."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.left = 0

    def one(self) -> None:
        """Count a job."""
        self.left -= 1
        if self.left == 0:
            self.event.set()


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=3000)
    given = options.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        urls = {
            "memory": "",
            "sqlite": f"sqlite:///{folder}/jobs.db",
            "postgresql": stack.enter_context(postgres()),
            "valkey": stack.enter_context(valkey()),
        }
        for backend, url in urls.items():
            rows.append(uvloop.run(_measure(backend, url, given.jobs)))
    table(f"{given.jobs:,} no-op jobs, {ENQUEUERS} enqueuers, one worker of {CONCURRENCY}", rows)
    write("jobs", rows, ("sqlalchemy", "aiosqlite", "asyncpg", "redis", "svc-infra"))


async def _measure(backend: str, url: str, jobs: int) -> dict[str, object]:
    done = Done()
    done.left = jobs

    @task(name="bench.nothing")
    async def nothing(number: int) -> None:
        done.one()

    async with opened(backend, url) as queue:
        started = time.perf_counter()
        numbers = iter(range(jobs))

        async def enqueue() -> None:
            for number in numbers:
                await queue.enqueue("bench.nothing", {"number": number})

        await asyncio.gather(*(enqueue() for _ in range(ENQUEUERS)))
        enqueued = time.perf_counter() - started
        worker = Worker(queue, [nothing], concurrency=CONCURRENCY)
        started = time.perf_counter()
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(120):
            await done.event.wait()
        worker.stop()
        await running  # until the last completion is stored
        processed = time.perf_counter() - started
    return {"backend": backend, "enqueue/s": jobs / enqueued, "processed/s": jobs / processed}


@asynccontextmanager
async def opened(backend: str, url: str) -> AsyncIterator[JobQueue]:
    """A queue of this backend, with its tables."""
    if backend == "memory":
        yield InMemoryJobQueue()
    elif backend == "valkey":
        queue = RedisJobQueue(url)
        try:
            yield queue
        finally:
            await queue.close()
    else:
        db = AsyncDatabase(url)
        await upgrade(db)
        try:
            yield SqlJobQueue(db)
        finally:
            await db.dispose()


if __name__ == "__main__":
    main()
