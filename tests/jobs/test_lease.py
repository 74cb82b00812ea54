"""Leases: kept for as long as a job runs, and what happens to an attempt that loses its own."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import InMemoryJobQueue, Job, JobState, RedisJobQueue, SqlJobQueue, task
from svc_infra.jobs.workers.attempt import Attempt, Stop
from svc_infra.jobs.workers.heartbeat import Heartbeat
from svc_infra.obs.metrics import Metrics
from svc_infra.testing import FakeClock
from svc_infra.wiring import Wiring
from tests.jobs.working import UnreliableQueue, measured, until, until_state, working


@task
async def nothing() -> None: ...


@pytest.fixture
def wiring() -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(Metrics, Metrics(CollectorRegistry()))
    return wiring


async def test_the_outcome_of_an_attempt_that_lost_its_job_is_dropped(wiring: Wiring) -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    go_on = asyncio.Event()

    @task
    async def slow() -> str:
        await go_on.wait()
        return "stale"

    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, wiring=wiring):
        await until_state(queue, job_id, JobState.RUNNING)
        clock.advance(60)
        other = await queue.reserve(worker_id="other")
        go_on.set()
        await until(lambda: measured(wiring, "jobs_stale_total") == 1)
        job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.token, job.result) == (JobState.RUNNING, other[0].token, None)
    assert measured(wiring, "jobs_finished_total", task=slow.name, outcome="stale") == 1


async def test_a_handler_whose_lease_is_lost_is_cancelled(wiring: Wiring) -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    cancelled = asyncio.Event()

    @task
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, wiring=wiring, lease_seconds=0.15):
        await until_state(queue, job_id, JobState.RUNNING)
        clock.advance(60)
        assert len(await queue.reserve(worker_id="other")) == 1
        async with asyncio.timeout(5):
            await cancelled.wait()
        await until(lambda: measured(wiring, "jobs_stale_total") == 1)


def attempt_of(job: Job) -> Attempt:
    """An attempt whose handler runs until it is cancelled."""
    attempt = Attempt(job)
    attempt.running = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    attempt.begin(None)
    return attempt


async def test_a_heartbeat_renews_what_is_held_and_stops_what_is_lost_or_cancelled() -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    for _ in range(3):
        await nothing.options(on=queue).enqueue()
    kept, lost, cancelled = [attempt_of(job) for job in await queue.reserve(worker_id="me", limit=3)]
    await queue.release(lost.job)
    await queue.cancel(cancelled.job.id)
    clock.advance(14)
    heartbeat = Heartbeat(queue, lambda: [kept, lost, cancelled], 15)
    async with heartbeat.beating():
        await heartbeat.beat(queue)
        await until(lambda: lost.stopped is not None and cancelled.stopped is not None)
    assert (kept.stopped, lost.stopped, cancelled.stopped) == (None, Stop.LOST, Stop.CANCELLED)
    assert [one.context.cancelled for one in (kept, lost, cancelled)] == [False, True, True]
    renewed = await queue.get(kept.job.id)
    assert renewed is not None
    assert renewed.lease_expires_at is not None
    assert (renewed.lease_expires_at - clock.now()).total_seconds() == 15
    assert kept.running is not None
    kept.running.cancel()


async def test_a_job_of_six_hours_is_given_to_nobody_else() -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    job_id = await nothing.options(on=queue).enqueue()
    (job,) = await queue.reserve(worker_id="me", lease_seconds=15)
    attempt = attempt_of(job)
    heartbeat = Heartbeat(queue, lambda: [attempt], 15)
    async with heartbeat.beating():
        for _ in range(6 * 3600 // 5):
            clock.advance(5)
            await heartbeat.beat(queue)
            assert await queue.reserve(worker_id="other") == []
    assert attempt.stopped is None
    await queue.ack(job)
    assert (await until_state(queue, job_id)).attempts == 1
    assert attempt.running is not None
    attempt.running.cancel()


async def test_a_running_job_that_is_cancelled_is_stopped_and_ends_as_cancelled(wiring: Wiring) -> None:
    queue = InMemoryJobQueue()
    cleaned_up = asyncio.Event()

    @task
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, wiring=wiring, lease_seconds=0.15):
        await until_state(queue, job_id, JobState.RUNNING)
        await queue.cancel(job_id)
        job = await until_state(queue, job_id)
    assert cleaned_up.is_set()
    assert (job.state, job.last_error) == (JobState.CANCELLED, "The job was cancelled.")
    assert measured(wiring, "jobs_finished_total", task=slow.name, outcome="cancelled") == 1


async def test_a_job_much_longer_than_its_lease_runs_once() -> None:
    queue = UnreliableQueue()
    runs = 0

    @task
    async def slow() -> None:
        nonlocal runs
        runs += 1
        await until(lambda: queue.calls.count("heartbeat") >= 9)  # three leases

    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, lease_seconds=0.1), working(queue, slow, lease_seconds=0.1):
        job = await until_state(queue, job_id)
    assert (runs, job.attempts, job.crashes) == (1, 1, 0)


def block(seconds: float) -> None:
    """Do what no handler should: hold up the event loop."""
    threading.Event().wait(seconds)


async def looked_for(kind: str, url: str, seconds: float) -> list[Job]:
    """What another worker, in a loop of its own, is given meanwhile."""
    database = None if kind == "valkey" else AsyncDatabase(url)
    queue = RedisJobQueue(url) if database is None else SqlJobQueue(database)
    until_time, taken = time.monotonic() + seconds, []
    while time.monotonic() < until_time:
        taken += await queue.reserve(worker_id="other")
        await asyncio.sleep(0.05)
    await (queue.close() if isinstance(queue, RedisJobQueue) else database.dispose())  # type: ignore[union-attr]
    return taken


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
async def test_a_handler_that_blocks_the_event_loop_keeps_its_job_and_is_reported(
    kind: str, request: pytest.FixtureRequest, wiring: Wiring, caplog: pytest.LogCaptureFixture
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    async with AsyncExitStack() as stack:
        queue: SqlJobQueue | RedisJobQueue
        if kind == "valkey":
            queue = RedisJobQueue(url)
            stack.push_async_callback(queue.close)
        else:
            db = AsyncDatabase(url)
            stack.push_async_callback(db.dispose)
            await upgrade(db)
            queue = SqlJobQueue(db)

        go_on = asyncio.Event()

        @task
        async def blocking() -> None:
            await go_on.wait()
            block(4.5)

        job_id = await blocking.options(on=queue).enqueue()
        async with working(queue, blocking, wiring=wiring, lease_seconds=3.0):
            await until_state(queue, job_id, JobState.RUNNING)
            go_on.set()
            taken = await asyncio.to_thread(asyncio.run, looked_for(kind, url, 4.0))
            job = await until_state(queue, job_id)
    assert taken == []
    assert (job.state, job.attempts, job.crashes) == (JobState.SUCCEEDED, 1, 0)
    (told,) = [line for line in caplog.records if line.message == "job.loop_blocked"]
    assert told.__dict__["task"] == blocking.name
    assert "in block" in told.__dict__["stack"]
    assert measured(wiring, "jobs_loop_blocked_total", task=blocking.name) == 1
