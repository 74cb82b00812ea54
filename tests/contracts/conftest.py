"""Every backend of the job queue, each with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase, Outbox, OutboxRelay
from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.job import Job, JobRequest
from svc_infra.jobs.redis.queue import OUTBOX_TOPIC, RedisJobQueue
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from tests.conftest import postgres_database

AnyQueue = InMemoryJobQueue | SqlJobQueue | RedisJobQueue


@dataclass
class Backend:
    """One backend.

    Attributes:
        clock: The time of `queue`.
        make: One more queue object over the same jobs; by default on the real clock.
        database: Where units of work are opened; the queue's own for the SQL ones.
    """

    name: str
    clock: FakeClock
    make: Callable[..., AnyQueue]
    queue: AnyQueue
    database: AsyncDatabase

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A unit of work; the library's tables are there."""
        async with self.database.session() as session:
            yield session

    async def settle(self) -> None:
        """Let what has been committed reach the queue."""
        if isinstance(self.queue, RedisJobQueue):
            await OutboxRelay(self.database, handlers={OUTBOX_TOPIC: self.queue.relay}).run_once()


@pytest.fixture(scope="session")
def kept_postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database with the library's tables, made once: `backend` empties the tables of jobs."""
    with postgres_database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "postgres", "valkey"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each backend in turn."""
    clock = FakeClock(datetime(2026, 1, 5, 12, 0, 0, 123456, tzinfo=UTC))
    async with AsyncExitStack() as stack:
        engine = "kept_postgres" if request.param == "postgres" else "migrated_sqlite"
        database = AsyncDatabase(request.getfixturevalue(f"{engine}_url"))
        stack.push_async_callback(database.dispose)
        make: Callable[..., Any]
        if request.param == "memory":
            only = InMemoryJobQueue(clock=clock)

            def make(clock: Clock | None = None) -> InMemoryJobQueue:
                return only

        elif request.param == "valkey":
            url = request.getfixturevalue("valkey_url")

            def make(clock: Clock | None = None) -> RedisJobQueue:
                queue = RedisJobQueue(url, clock=clock, outbox=Outbox())
                stack.push_async_callback(queue.close)
                return queue

        else:
            if request.param == "postgres":
                async with database.session() as session:
                    await session.execute(text("TRUNCATE svc_jobs, svc_job_queues, svc_job_limits, svc_outbox"))

            def make(clock: Clock | None = None) -> SqlJobQueue:
                return SqlJobQueue(database, clock=clock)

        yield Backend(request.param, clock, make, make(clock), database)


@pytest.fixture
def queue(backend: Backend) -> AnyQueue:
    """The backend's queue, whose time is `clock`."""
    return backend.queue


@pytest.fixture
def clock(backend: Backend) -> FakeClock:
    """The time of `queue`."""
    return backend.clock


async def claim(queue: AnyQueue, limit: int = 1, **options: Any) -> list[Job]:
    return await queue.reserve(worker_id="worker", limit=limit, **options)


async def claim_one(queue: AnyQueue, **options: Any) -> Job:
    (job,) = await claim(queue, **options)
    return job


async def kept(queue: AnyQueue, job_id: str) -> Job:
    job = await queue.get(job_id)
    assert job is not None
    return job


async def enqueue_for(jobs: AnyQueue, tenant: str, count: int = 1, **options: Any) -> None:
    """Store jobs of this tenant, named after it."""
    token = enter(Context(tenant_id=tenant))
    try:
        await jobs.enqueue_many([JobRequest(name=tenant, **options) for _ in range(count)])
    finally:
        leave(token)


async def names(queue: AnyQueue, limit: int = 1, **options: Any) -> list[str]:
    return [job.name for job in await claim(queue, limit=limit, **options)]
