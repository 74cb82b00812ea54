"""What only the queue in SQL does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, CursorResult, text

from svc_infra.db import AsyncDatabase, Outbox
from svc_infra.db.columns import Base
from svc_infra.errors import ConfigurationError, StaleAttemptError, SvcInfraError, UnavailableError
from svc_infra.jobs.job import UNREADABLE, Job, JobRequest, JobState
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.sql.connections import PostgresConnections
from svc_infra.jobs.sql.postgres import PostgresJobs
from svc_infra.jobs.sql.postgres_steps import CLAIMS, ENDS
from svc_infra.jobs.sql.queue import SqlJobQueue
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


async def many_jobs(db: AsyncDatabase) -> None:
    await execute(
        db,
        """
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)
        INSERT INTO svc_jobs (id, name, queue, state, priority, max_attempts, backoff_seconds, payload, context,
                              created_at, available_at)
        SELECT 'job-' || n, 'a', 'q' || (n % 3),
               CASE n % 4 WHEN 0 THEN 'ready' WHEN 1 THEN 'scheduled' WHEN 2 THEN 'dead' ELSE 'succeeded' END,
               n % 5, 5, 5, '{}', '{}', '2026-01-01 00:00:00.000000', '2126-01-01 00:00:00.000000' FROM numbers
        """,
    )
    await execute(db, "ANALYZE svc_jobs")


async def test_sqlite_finds_jobs_by_index_alone(sqlite_db: AsyncDatabase) -> None:
    await many_jobs(sqlite_db)
    queue = SqlJobQueue(sqlite_db)
    sent: list[str] = []
    async with sqlite_db.session() as session:
        pooled = await (await session.connection()).get_raw_connection()
        driver: Any = pooled.driver_connection
        await driver.set_trace_callback(sent.append)
    jobs = await queue.reserve(worker_id="w", queues=["q0", "q1"], limit=5)
    assert len(jobs) == 5
    await queue.heartbeat(jobs)
    assert await queue.ack_many([Completion(job) for job in jobs]) == set()
    statements = [one for one in sent if one.split()[0] in ("SELECT", "UPDATE") and "svc_jobs" in one]
    async with sqlite_db.session() as session:
        for one in statements:
            plan = await (await session.connection()).exec_driver_sql(f"EXPLAIN QUERY PLAN {one}")
            assert [row.detail for row in plan if row.detail.startswith("SCAN svc_jobs")] == [], one
    assert len(statements) > 10


async def test_postgres_never_reads_the_whole_table_to_work(postgres_url: str, postgres_db: AsyncDatabase) -> None:
    await many_jobs(postgres_db)
    db = AsyncDatabase(postgres_url, pool_size=1, max_overflow=0)  # one connection: its own numbers, at once
    queue = SqlJobQueue(db)

    async def whole_reads() -> int:
        await execute(db, "SELECT pg_stat_force_next_flush()")
        (row,) = await execute(db, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'svc_jobs'")
        return int(row.seq_scan)

    before = await whole_reads()
    for _ in range(10):  # more often than PostgreSQL tries a plan before it keeps one for good
        jobs = await queue.reserve(worker_id="w", queues=["q0", "q1"], limit=10)
        assert len(jobs) == 10
        await queue.heartbeat(jobs)
        for job in jobs[:2]:
            await queue.ack(job)
        await queue.fail(jobs[2], error="broken")
        await queue.release(jobs[3])
        await queue.enqueue("a", unique_key="key")
        await queue.purge(older_than_seconds=3600)
    assert await whole_reads() == before
    await db.dispose()


async def test_postgres_goes_on_by_index_when_a_table_that_was_small_grows(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    assert isinstance(queue._jobs, PostgresJobs)
    connections = queue._jobs._steps.connections
    await queue.reserve(worker_id="w")
    await queue.wait(0.001)  # listens, and keeps connections

    async def whole_reads() -> int:
        for purpose in (CLAIMS, ENDS):
            await connections.fetch_kept(purpose, "SELECT pg_stat_force_next_flush()")
        (row,) = await execute(postgres_db, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'svc_jobs'")
        return int(row.seq_scan)

    await queue.enqueue_many([JobRequest(name="a", queue="other") for _ in range(10)])
    await execute(postgres_db, "ANALYZE svc_jobs")  # one page, which is read soonest
    before = await whole_reads()
    for _ in range(10):  # more often than PostgreSQL tries a plan before it keeps one for good
        await queue.enqueue("a")
        (job,) = await queue.reserve(worker_id="w", limit=10)
        await queue.ack(job)
    assert await whole_reads() == before


async def test_a_kept_connection_that_fails_or_is_cancelled_is_not_used_again(postgres_db: AsyncDatabase) -> None:
    connections = PostgresConnections(postgres_db)
    await connections.keep(ENDS)
    pid = "SELECT pg_backend_pid() AS pid"
    first = (await connections.fetch_kept(ENDS, pid))[0]["pid"]
    assert (await connections.fetch_kept(ENDS, pid))[0]["pid"] == first
    with pytest.raises(SvcInfraError):
        await connections.fetch_kept(ENDS, "SELECT 1 / 0")
    assert (await connections.fetch_kept(ENDS, pid))[0]["pid"] != first  # of the pool
    await connections.keep(ENDS)
    second = (await connections.fetch_kept(ENDS, pid))[0]["pid"]
    sleeping = asyncio.create_task(connections.fetch_kept(ENDS, "SELECT pg_sleep(60)"))
    async with asyncio.timeout(10):
        while not await execute(postgres_db, "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"):
            await asyncio.sleep(0.01)
    assert (await connections.fetch_kept(ENDS, pid))[0]["pid"] != second  # busy: of the pool
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert (await connections.fetch_kept(ENDS, pid))[0]["pid"] != second
    await connections.keep(ENDS)
    assert (await connections.fetch_kept(ENDS, pid))[0]["pid"] not in (first, second)


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
    postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    total, chance = 300, random.Random(7)
    databases = [AsyncDatabase(postgres_url, pool_size=2) for _ in range(6)]
    queues = [SqlJobQueue(db, max_crashes=1000) for db in databases]
    finished: Counter[str] = Counter()

    async def produce(queue: SqlJobQueue, numbers: range) -> None:
        for number in numbers:
            await queue.enqueue("a", job_id=str(number), priority=number % 3, max_attempts=1000, backoff_seconds=0.01)

    async def work(queue: SqlJobQueue, name: str) -> None:
        while finished.total() < total:
            for job in await queue.reserve(worker_id=name, limit=4, lease_seconds=4.0):
                outcome = chance.random()
                if outcome < 0.1:
                    continue  # as if this worker had died: the lease ends
                if outcome < 0.2:
                    await queue.fail(job, error="broken")
                elif outcome < 0.3:
                    await queue.release(job)
                else:
                    await queue.ack(job)
                    finished[job.id] += 1

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
    postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    other = AsyncDatabase(postgres_url)
    worker = SqlJobQueue(postgres_db)
    waiting = await listening(worker)
    await SqlJobQueue(other).enqueue("a")
    await asyncio.wait_for(waiting, 25)
    assert len(await worker.reserve(worker_id="w")) == 1
    await other.dispose()


async def test_a_worker_that_lost_its_ear_looks_and_listens_again(
    postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    worker, other = SqlJobQueue(postgres_db), AsyncDatabase(postgres_url)
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


async def test_claims_pass_no_dead_index_entries_while_an_old_transaction_is_open(
    postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    db = AsyncDatabase(postgres_url, pool_size=1, max_overflow=0)  # one connection: its own numbers, at once
    queue = SqlJobQueue(db)

    async def index_entries_read(index: str = "ix_svc_jobs_ready") -> int:
        await execute(db, "SELECT pg_stat_force_next_flush()")
        found = f"SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = '{index}'"
        return int((await execute(db, found))[0][0])

    await queue.enqueue_many([JobRequest(name="a") for _ in range(2000)])
    await queue.reserve(worker_id="w", limit=1)
    queue._jobs._look_at = float("inf")  # type: ignore[union-attr]  # a look passes them all, beside the claims
    async with postgres_db.session() as old:
        await old.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await old.execute(text("SELECT count(*) FROM svc_jobs"))
        for _ in range(18):
            await queue.ack_many([Completion(job) for job in await queue.reserve(worker_id="w", limit=100)])
        before = await index_entries_read()
        jobs = await queue.reserve(worker_id="w", limit=50)
        assert len(jobs) == 50
        assert await index_entries_read() - before < 200
        before = await index_entries_read("ix_svc_jobs_running")
        await queue.heartbeat(jobs)
        assert await queue.ack_many([Completion(job) for job in jobs[:25]]) == set()
        assert await queue.ack_many([Completion(job, "done") for job in jobs[25:]]) == set()
        assert await index_entries_read("ix_svc_jobs_running") == before
    await db.dispose()


async def test_a_job_below_what_is_known_is_found_by_the_next_look(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    await queue.enqueue_many([JobRequest(name="a") for _ in range(20)])
    await queue.reserve(worker_id="w", limit=5)
    await SqlJobQueue(postgres_db).enqueue("urgent", priority=9)  # whose notice nobody hears
    async with asyncio.timeout(10):
        while "urgent" not in [job.name for job in await queue.reserve(worker_id="w", limit=1)]:
            await queue.enqueue("a")
            await asyncio.sleep(0.02)


async def test_what_the_driver_raises_is_translated(tmp_path: Path) -> None:
    away = AsyncDatabase("postgresql://nobody@127.0.0.1:1/nothing")
    empty = AsyncDatabase(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(UnavailableError):
        await SqlJobQueue(away).reserve(worker_id="w")
    with pytest.raises(SvcInfraError):
        await SqlJobQueue(empty).enqueue("a")
    await away.dispose()
    await empty.dispose()
