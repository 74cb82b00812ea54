"""What only the queue in SQL does."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, CursorResult, event, text

from svc_infra.db import AsyncDatabase, Outbox
from svc_infra.db.columns import Base
from svc_infra.errors import ConfigurationError, StaleAttemptError, SvcInfraError, UnavailableError, ValidationError
from svc_infra.jobs.job import UNREADABLE, Job, JobRequest, JobState, Limit
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.obs.context import restored
from svc_infra.testing import FakeClock


async def claim_one(queue: SqlJobQueue, **options: Any) -> Job:
    (job,) = await queue.reserve(worker_id="worker", **options)
    return job


async def execute(db: AsyncDatabase, statement: str) -> list[Any]:
    async with db.session() as session:
        result = await session.execute(text(statement))
        return list(result.all()) if isinstance(result, CursorResult) and result.returns_rows else []


async def test_the_migration_makes_the_table_that_the_queue_uses(db: AsyncDatabase) -> None:
    def differences(connection: Connection) -> list[Any]:
        def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
            return (thing if kind == "table" else thing.table).name == "svc_jobs"

        context = MigrationContext.configure(connection, opts={"include_object": ours})
        return list(compare_metadata(context, Base.metadata))

    async with db.session() as session:
        assert await (await session.connection()).run_sync(differences) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queue": "q", "priority": 3, "max_attempts": 2, "backoff_seconds": 1.5, "timeout_seconds": 9.0},
        {"delay_seconds": 90.0, "priority": -2, "limit": Limit("k", concurrency=2, rate=5, period_seconds=7.0)},
        {"at": datetime(2126, 1, 1, tzinfo=UTC), "limit": Limit("k", rate=1)},
        {"at": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
)
async def test_jobs_are_stored_alike_whether_their_ids_are_new_or_chosen(
    postgres_db: AsyncDatabase, options: dict[str, Any]
) -> None:
    queue = SqlJobQueue(postgres_db, clock=FakeClock())
    with restored({"tenant_id": "acme"}):
        (made, _) = await queue.enqueue_many([JobRequest(name="a", payload={"n": n}, **options) for n in range(2)])
        await queue.enqueue("a", {"n": 0}, job_id="chosen", **options)
    rows = await execute(postgres_db, f"SELECT * FROM svc_jobs WHERE id IN ('{made}', 'chosen') ORDER BY id")
    first, second = ({**row._mapping, "id": "", "context": ""} for row in rows)
    assert first == second
    assert first["tenant"] == "acme"


async def test_each_of_many_jobs_has_the_options_that_were_given_for_it(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    requests = [
        JobRequest(name="a", payload={"n": 0}),
        JobRequest(name="a", payload={"n": 1}, priority=2),
        JobRequest(name="b", payload={"n": 2}, priority=2, job_id="chosen"),
        JobRequest(name="a", payload={"n": 3}),
    ]
    ids = await queue.enqueue_many(requests)
    stored = [await queue.get(job_id) for job_id in ids]
    assert [(job.name, job.priority, job.payload) for job in stored if job] == [
        (request.name, request.priority, request.payload) for request in requests
    ]
    assert ids[2] == "chosen"
    with pytest.raises(ValidationError):
        await queue.enqueue_many([JobRequest(name="a"), JobRequest(name="a", priority=5000)])
    assert len(await queue.list()) == 4


async def test_a_damaged_job_goes_to_the_dead_letter_and_keeps_nobody_up(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    for job_id in ("cut", "list", "context", "sound"):
        await queue.enqueue("a", {"n": 1}, job_id=job_id)
    for job_id, column, value in [("cut", "payload", '{"n": '), ("list", "payload", "[1]"), ("context", "context", "")]:
        await execute(db, f"UPDATE svc_jobs SET {column} = '{value}' WHERE id = '{job_id}'")
    assert [job.id for job in await queue.reserve(worker_id="w", limit=9)] == ["sound"]
    dead = {job.id: job for job in await queue.list(state=JobState.DEAD)}
    assert dead.keys() == {"cut", "list", "context"}
    assert dead["cut"].payload == {UNREADABLE: '{"n": '}
    assert "no JSON object" in str(dead["list"].last_error)


async def test_a_job_of_a_newer_format_is_left_to_newer_workers(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db, clock=FakeClock())
    await queue.enqueue("a", job_id="new")
    await queue.enqueue("a", job_id="known")
    await execute(db, "UPDATE svc_jobs SET version = 2 WHERE id = 'new'")
    assert [job.id for job in await queue.reserve(worker_id="w", limit=9)] == ["known"]
    left = await queue.get("new")
    assert left is not None
    assert (left.state, left.attempts, left.crashes, left.version) == (JobState.READY, 0, 0, 2)
    assert left.available_at - left.created_at == timedelta(seconds=30)


async def test_a_session_of_another_database_is_refused(db: AsyncDatabase, tmp_path: Path) -> None:
    queue, other = SqlJobQueue(db), AsyncDatabase(f"sqlite:///{tmp_path}/other.db")
    await queue.enqueue("a")
    job = await claim_one(queue)
    async with other.session() as session:
        with pytest.raises(ConfigurationError, match="session's database"):
            await queue.enqueue("b", session=session)
        with pytest.raises(ConfigurationError, match="session's database"):
            await queue.ack(job, session=session)
    await other.dispose()
    assert await queue.get(job.id) == job


async def test_the_effects_of_a_stale_attempt_are_rolled_back(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    await queue.enqueue("a")
    stale = await claim_one(queue)
    await queue.release(stale)
    current = await claim_one(queue)

    async def finish() -> None:
        async with db.session() as session:
            await Outbox().add(session, "effects", {})
            await queue.ack(stale, session=session)

    with pytest.raises(StaleAttemptError):
        await finish()
    assert await execute(db, "SELECT 1 FROM svc_outbox") == []
    assert await queue.get(current.id) == current


async def test_postgres_tells_the_time_to_all_its_workers(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    await queue.enqueue("a", delay_seconds=30)
    ((now, created_at, available_at),) = await execute(
        postgres_db, "SELECT statement_timestamp(), created_at, available_at FROM svc_jobs"
    )
    assert timedelta(0) <= now - created_at < timedelta(seconds=5)
    assert available_at - created_at == timedelta(seconds=30)


async def test_a_transaction_that_finishes_a_job_delays_no_other_lease(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    for _ in range(2):
        await queue.enqueue("a")
    first, second = await queue.reserve(worker_id="w", limit=2, lease_seconds=0.001)
    async with postgres_db.session() as session:
        await queue.ack(first, session=session)
        assert (await asyncio.wait_for(queue.heartbeat([first, second]), 5)).held == {first.id, second.id}
        assert await asyncio.wait_for(queue.reserve(worker_id="other", limit=2), 5) == []
    assert (await queue.heartbeat([first, second])).held == {second.id}


async def test_a_long_transaction_on_sqlite_costs_no_worker_of_this_process_its_lease(
    sqlite_db: AsyncDatabase,
) -> None:
    clock = FakeClock()
    queue = SqlJobQueue(sqlite_db, clock=clock)
    await queue.enqueue("a")
    job = await claim_one(queue, lease_seconds=15)
    async with sqlite_db.session() as session:
        await Outbox().add(session, "effects", {})
        claiming = asyncio.create_task(queue.reserve(worker_id="other"))
        await asyncio.sleep(0)
        beating = asyncio.create_task(queue.heartbeat([job], lease_seconds=15))
        await asyncio.sleep(0)
        clock.advance(20)
    assert await claiming == []
    assert (await beating).held == {job.id}


async def test_a_unique_key_in_an_open_transaction_holds_back_whoever_wants_it_too(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)

    second: asyncio.Task[str]

    async def enqueue_and_fail() -> None:
        nonlocal second
        async with postgres_db.session() as session:
            await queue.enqueue("a", unique_key="key", session=session)
            second = asyncio.create_task(queue.enqueue("b", unique_key="key"))
            await until_someone_waits(postgres_db)
            raise LookupError

    with pytest.raises(LookupError):
        await enqueue_and_fail()
    job_id = await second
    assert [(job.id, job.name) for job in await queue.list()] == [(job_id, "b")]


async def until_someone_waits(db: AsyncDatabase) -> None:
    async with asyncio.timeout(5):
        while not await execute(db, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


async def test_workers_on_many_connections_lose_and_double_nothing(
    migrated_postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    total, chance, lease_seconds = 300, random.Random(7), 1.0
    databases = [AsyncDatabase(migrated_postgres_url, pool_size=2) for _ in range(6)]
    queues = [SqlJobQueue(db, max_crashes=1000) for db in databases]
    finished: Counter[str] = Counter()

    async def produce(queue: SqlJobQueue, numbers: range) -> None:
        for number in numbers:
            await queue.enqueue("a", job_id=str(number), priority=number % 3, max_attempts=1000, backoff_seconds=0.01)

    async def work(queue: SqlJobQueue, name: str) -> None:
        while finished.total() < total:
            asked = time.monotonic()
            for job in await queue.reserve(worker_id=name, limit=4, lease_seconds=lease_seconds):
                outcome = chance.random()
                try:
                    if outcome < 0.1:
                        continue  # as if this worker had died: the lease ends
                    if outcome < 0.2:
                        await queue.fail(job, error="broken")
                    elif outcome < 0.3:
                        await queue.release(job)
                    else:
                        await queue.ack(job)
                        finished[job.id] += 1
                except StaleAttemptError:  # only of a worker that the machine kept waiting
                    assert time.monotonic() - asked >= lease_seconds

    async with asyncio.timeout(60):
        await asyncio.gather(
            produce(queues[0], range(150)),
            produce(queues[1], range(100, total)),
            *(work(queue, f"w{number}") for number, queue in enumerate(queues)),
        )
    assert finished == dict.fromkeys(map(str, range(total)), 1)
    assert (await queues[0].stats()).counts[JobState.SUCCEEDED] == total
    for db in databases:
        await db.dispose()


async def listening(queue: SqlJobQueue) -> asyncio.Task[None]:
    """A task that waits for a notice, once PostgreSQL would send one."""
    assert await queue.reserve(worker_id="w") == []
    waiting = asyncio.create_task(queue.wait(30))
    async with asyncio.timeout(30):
        while not await execute(queue._db, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"):
            await asyncio.sleep(0.01)
    return waiting


async def test_a_worker_of_another_process_hears_of_a_job_at_once(
    migrated_postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    other = AsyncDatabase(migrated_postgres_url)
    worker = SqlJobQueue(postgres_db)
    waiting = await listening(worker)
    await SqlJobQueue(other).enqueue("a")
    await asyncio.wait_for(waiting, 25)
    assert len(await worker.reserve(worker_id="w")) == 1
    await other.dispose()


async def test_a_worker_that_lost_its_ear_looks_and_listens_again(
    migrated_postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    worker, other = SqlJobQueue(postgres_db), AsyncDatabase(migrated_postgres_url)
    waiting = await listening(worker)
    await execute(other, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    await asyncio.wait_for(waiting, 25)
    worker._jobs._listen_not_before = 0.0  # type: ignore[union-attr]
    waiting = await listening(worker)
    await SqlJobQueue(other).enqueue("a", delay_seconds=0.05)
    await asyncio.wait_for(waiting, 25)
    async with asyncio.timeout(25):
        while not await worker.reserve(worker_id="w"):
            await worker.wait(30)
    await other.dispose()


async def test_a_job_below_what_is_known_is_found_by_the_next_look(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    await queue.enqueue_many([JobRequest(name="a") for _ in range(20)])
    await queue.reserve(worker_id="w", limit=5)
    await SqlJobQueue(postgres_db).enqueue("urgent", priority=9)  # whose notice nobody hears
    async with asyncio.timeout(10):
        while "urgent" not in [job.name for job in await queue.reserve(worker_id="w", limit=1)]:
            await queue.enqueue("a")
            await asyncio.sleep(0.02)


async def test_many_unique_jobs_are_few_statements(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    held = await queue.enqueue("a", unique_key="key-7")
    requests = [JobRequest(name="a", unique_key=f"key-{number % 400}") for number in range(500)]
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    event.listen(db.engine.sync_engine, "before_cursor_execute", count)
    ids = await queue.enqueue_many(requests)
    assert statements < 10
    assert ids[7] == held
    assert ids[400:] == ids[:100]
    assert len(set(ids)) == len(await queue.list(limit=1000)) == 400
    statements = 0
    assert await queue.enqueue_many(requests) == ids
    assert statements < 10


async def test_many_dead_jobs_are_put_back_in_few_statements(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db)
    await queue.enqueue_many([JobRequest(name="a", max_attempts=1) for _ in range(100)])
    for job in await queue.reserve(worker_id="w", limit=100):
        await queue.fail(job, error="broken")
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    event.listen(db.engine.sync_engine, "before_cursor_execute", count)
    assert await queue.retry_many(limit=99, per_second=10) == 99
    assert statements < 10
    assert len(await queue.list(state=JobState.DEAD)) == 1


async def test_what_the_driver_raises_is_translated(tmp_path: Path) -> None:
    away = AsyncDatabase("postgresql://nobody@127.0.0.1:1/nothing")
    empty = AsyncDatabase(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(UnavailableError):
        await SqlJobQueue(away).reserve(worker_id="w")
    with pytest.raises(SvcInfraError):
        await SqlJobQueue(empty).enqueue("a")
    await away.dispose()
    await empty.dispose()
