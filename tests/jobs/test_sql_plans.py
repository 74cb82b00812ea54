"""How the queue in SQL finds its rows: by index, also in a table that grows and beside an old transaction."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from sqlalchemy import event, text

from svc_infra.db import AsyncDatabase
from svc_infra.errors import SvcInfraError
from svc_infra.jobs.job import JobRequest, JobState, Limit
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.sql.connections import BY_INDEX, PostgresConnections
from svc_infra.jobs.sql.postgres import PostgresJobs
from svc_infra.jobs.sql.postgres_steps import CLAIMS, ENDS
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.obs.context import Context, enter, leave


async def execute(db: AsyncDatabase, statement: str) -> list[Any]:
    async with db.session() as session:
        result: Any = await session.execute(text(statement))
        return list(result.all()) if result.returns_rows else []


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


async def test_a_claim_of_sqlite_passes_no_job_of_a_tenant_that_floods_the_queue(sqlite_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(sqlite_db)
    steps = 0

    def counted() -> int:
        nonlocal steps
        steps += 1
        return 0

    async def steps_of_a_claim() -> int:
        before = steps
        jobs = await queue.reserve(worker_id="w", limit=3)
        assert len(jobs) == 3
        taken = steps - before
        await queue.ack_many([Completion(job) for job in jobs])
        return taken

    async def flood(jobs: int) -> None:
        limit = Limit("a-limit", concurrency=10)
        for tenant, of_it in (("flood", None), ("flood", limit), ("quiet", None)):
            token = enter(Context(tenant_id=tenant))
            await queue.enqueue_many([JobRequest(name="a", limit=of_it) for _ in range(jobs)])
            leave(token)

    await flood(100)
    async with sqlite_db.session() as session:
        pooled = await (await session.connection()).get_raw_connection()
        driver: Any = pooled.driver_connection
        await driver.set_progress_handler(counted, 1)  # after each instruction of SQLite's virtual machine
    few = await steps_of_a_claim()
    await flood(2000)
    assert 0 < await steps_of_a_claim() < 2 * few


async def test_postgres_never_reads_the_whole_table_to_work(
    migrated_postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    await many_jobs(postgres_db)
    db = AsyncDatabase(migrated_postgres_url, pool_size=1, max_overflow=0)  # one connection: its own numbers, at once
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


async def test_questions_about_few_jobs_read_none_that_has_succeeded(db: AsyncDatabase) -> None:
    await execute(
        db,
        """
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)
        INSERT INTO svc_jobs (id, name, queue, state, priority, max_attempts, backoff_seconds, payload, context,
                              created_at, available_at)
        SELECT 'job-' || n, 'a', 'q', CASE n % 1000 WHEN 0 THEN 'ready' WHEN 1 THEN 'scheduled' WHEN 2 THEN 'dead'
                    WHEN 3 THEN 'running' ELSE 'succeeded' END,
               0, 5, 5, '{}', '{}', '2026-01-01 00:00:00.000000', '2126-01-01 00:00:00.000000' FROM numbers
        """,
    )
    await execute(db, "ANALYZE svc_jobs")
    asked: list[tuple[str, Any]] = []
    queue = SqlJobQueue(db)
    for engine in db.engines.values():
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *facts: asked.append(facts[2:4]))
    assert [(info.ready, info.running) for info in await queue.queues()] == [(40, 20)]
    for state in (JobState.DEAD, JobState.RUNNING):
        assert len(await queue.list(state=state, fingerprint="", limit=5, before="job-20000")) == 5
    assert await queue.retry_many(fingerprint="", limit=5) == 5
    explain = "EXPLAIN" if db.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    asked = [one for one in asked if "svc_jobs" in one[0] and one[0].startswith(("SELECT", "WITH"))]
    assert len(asked) == 4
    async with db.session() as session:
        for statement, values in asked[:]:
            plan = await (await session.connection()).exec_driver_sql(f"{explain} {statement}", values)
            told = "\n".join(str(row[-1]) for row in plan)
            assert not re.search(r"SCAN svc_jobs$|Seq Scan|ix_svc_jobs_created_at", told, re.MULTILINE), told


async def test_postgres_goes_on_by_index_when_a_table_that_was_small_grows(postgres_db: AsyncDatabase) -> None:
    queue = SqlJobQueue(postgres_db)
    assert isinstance(queue._jobs, PostgresJobs)
    connections = queue._jobs._steps.connections
    await queue.reserve(worker_id="w")
    await queue.wait(0.001)  # listens, and keeps a connection for claims
    await connections.keep(ENDS)

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
    await asyncio.gather(connections.keep(ENDS), connections.keep(ENDS))
    async with asyncio.timeout(10):
        while len(await execute(postgres_db, f"SELECT 1 FROM pg_stat_activity WHERE query = '{BY_INDEX}'")) != 1:
            await asyncio.sleep(0.01)
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


async def test_a_connection_that_is_in_use_while_its_pool_is_disposed_of_is_closed_after_that(
    postgres_url: str,
) -> None:
    db = AsyncDatabase(postgres_url)
    async with PostgresConnections(db).one() as driver:
        await db.dispose()
        assert await driver.fetchval("SELECT 1") == 1
    assert driver.is_closed()


async def test_claims_pass_no_dead_index_entries_while_an_old_transaction_is_open(
    migrated_postgres_url: str, postgres_db: AsyncDatabase
) -> None:
    db = AsyncDatabase(migrated_postgres_url, pool_size=1, max_overflow=0)  # one connection: its own numbers, at once
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
