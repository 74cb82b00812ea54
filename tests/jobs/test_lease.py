"""Leases: kept for as long as a job runs, and what happens to an attempt that loses its own."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from svc_infra.config import Settings
from svc_infra.jobs import InMemoryJobQueue, JobState, task
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.worker import Attempt, Heartbeat, Stop
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


async def test_a_heartbeat_renews_what_is_held_and_stops_what_is_lost() -> None:
    clock = FakeClock()
    queue = InMemoryJobQueue(clock=clock)
    for _ in range(2):
        await nothing.options(on=queue).enqueue()
    kept, lost = [Attempt(job, None) for job in await queue.reserve(worker_id="me", limit=2)]
    for one in (kept, lost):
        one.task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
        one.started = True
    await queue.release(lost.job)
    clock.advance(14)
    await Heartbeat(queue, lambda: [kept, lost], Outage(), 15).beat()
    assert (kept.stopped, lost.stopped) == (None, Stop.LOST)
    assert (lost.context.cancelled, kept.context.cancelled) == (True, False)
    renewed = await queue.get(kept.job.id)
    assert renewed is not None
    assert renewed.lease_expires_at is not None
    assert (renewed.lease_expires_at - clock.now()).total_seconds() == 15
    kept.task.cancel()


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
