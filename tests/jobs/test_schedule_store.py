"""Where schedules are kept: one transaction with the jobs, one clock, the way to a queue outside of the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from svc_infra.db import AsyncDatabase, Outbox, OutboxRelay
from svc_infra.jobs import InMemoryJobQueue, RedisJobQueue, Scheduler, SqlJobQueue, every, task
from svc_infra.jobs.easy import schedule_store
from svc_infra.jobs.redis.queue import OUTBOX_TOPIC
from svc_infra.jobs.schedules import SqlScheduleStore
from svc_infra.testing import FakeClock
from tests.jobs.working import START, until


@task(name="work")
async def work() -> None: ...


async def test_a_tick_whose_job_cannot_be_stored_is_not_recorded(db: AsyncDatabase) -> None:
    class Full(SqlJobQueue):
        full = True

        async def enqueue(self, *arguments: Any, **options: Any) -> str:
            job_id = await super().enqueue(*arguments, **options)
            if self.full:
                raise OSError("the disk is full")
            return job_id

    queue, clock = Full(db), FakeClock(START)
    scheduler = Scheduler(queue, [every(60, work)], store=SqlScheduleStore(db, clock=clock), catch_up_seconds=0)
    await scheduler.tick()
    clock.advance(60)
    assert await scheduler.tick() == []
    assert (await queue.list(), await scheduler.schedules.ticks("work")) == ([], [])
    queue.full = False
    assert len(await scheduler.tick()) == 1
    assert len(await queue.list()) == len(await scheduler.schedules.ticks("work")) == 1


async def test_of_many_schedulers_at_once_one_decides(db: AsyncDatabase) -> None:
    queue, clock = SqlJobQueue(db), FakeClock(START)
    schedulers = [
        Scheduler(queue, [every(60, work)], store=SqlScheduleStore(db, clock=clock), catch_up_seconds=0)
        for _ in range(5)
    ]
    await schedulers[0].tick()
    for _ in range(3):
        clock.advance(60)
        stored = await asyncio.gather(*(one.tick() for one in schedulers))
        assert sorted(map(len, stored)) == [0, 0, 0, 0, 1]


async def test_schedulers_on_postgresql_share_the_servers_clock(postgres_db: AsyncDatabase) -> None:
    store = SqlScheduleStore(postgres_db)
    first = await store.look()
    assert first.records == {}
    assert abs(first.now - datetime.now(UTC)) < timedelta(seconds=5)
    assert (await store.look()).now > first.now


async def test_schedules_are_kept_in_the_database_that_the_queue_can_store_jobs_with(sqlite_db: AsyncDatabase) -> None:
    alone, with_outbox = (RedisJobQueue("redis://localhost:1", outbox=outbox) for outbox in (None, Outbox()))
    assert isinstance(schedule_store(SqlJobQueue(sqlite_db)), SqlScheduleStore)
    assert isinstance(schedule_store(with_outbox, db=sqlite_db), SqlScheduleStore)
    assert schedule_store(with_outbox) is None
    assert schedule_store(alone, db=sqlite_db) is None
    assert schedule_store(InMemoryJobQueue(), db=sqlite_db) is None
    await alone.close()
    await with_outbox.close()


async def test_the_jobs_of_ticks_reach_redis_through_the_outbox(db: AsyncDatabase, valkey_url: str) -> None:
    relay, clock = OutboxRelay(db), FakeClock(START)
    queue = RedisJobQueue(valkey_url, outbox=Outbox(wake=relay.wake))
    relay.register(OUTBOX_TOPIC, queue.relay)
    policies: dict[str, Any] = {"missed": "run_all", "overlap": "skip"}
    store = SqlScheduleStore(db, clock=clock)
    scheduler = Scheduler(queue, [every(60, work, **policies)], store=store, catch_up_seconds=0)
    await scheduler.tick()
    clock.advance(60)
    (job_id,) = await scheduler.tick()
    clock.advance(59.5)  # its job is on its way, which counts as waiting
    assert (await queue.get(job_id), await scheduler.tick()) == (None, [])
    stop = asyncio.Event()
    running = asyncio.create_task(relay.run(stop))

    async def arrived() -> bool:
        return await queue.get(job_id) is not None

    await until(arrived)
    stop.set()
    await running
    clock.advance(1)
    assert await scheduler.tick() == []
    assert [tick.outcome for tick in await store.ticks("work")] == ["overlap", "stored"]
    await queue.close()


async def test_a_job_that_redis_keeps_no_longer_has_ended(sqlite_db: AsyncDatabase, valkey_url: str) -> None:
    clock = FakeClock(START)
    queue = RedisJobQueue(valkey_url, outbox=Outbox(clock=clock))
    relay = OutboxRelay(sqlite_db, handlers={OUTBOX_TOPIC: queue.relay}, clock=clock)
    store = SqlScheduleStore(sqlite_db, clock=clock)
    scheduler = Scheduler(queue, [every(10, work, overlap="skip")], store=store, catch_up_seconds=0)
    await scheduler.tick()
    clock.advance(10)
    assert len(await scheduler.tick()) == 1
    clock.advance(10)
    assert await scheduler.tick() == []  # it is still on its way
    assert await relay.run_once() == 1
    (job,) = await queue.reserve(worker_id="w")
    await queue.ack(job)
    await queue.purge(older_than_seconds=0)  # as happens to the oldest of more than it keeps
    clock.advance(10)
    assert len(await scheduler.tick()) == 1
    await queue.close()


async def test_a_running_scheduler_outlives_an_outage_of_its_database(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(SqlScheduleStore):
        down = True

        async def look(self) -> Any:
            if self.down:
                raise ConnectionError
            return await super().look()

    queue, store = SqlJobQueue(sqlite_db), Down(sqlite_db)
    scheduler = Scheduler(queue, [every(0.05, work)], store=store)
    running = asyncio.create_task(scheduler.run())
    await until(lambda: "jobs.queue_unavailable" in caplog.messages)
    store.down = False

    async def stored() -> bool:
        return bool(await queue.list())

    await until(stored)
    scheduler.stop()
    await running
