"""The worker's end: what runs may finish, the rest is handed back, and nothing waits for ever."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from svc_infra.jobs import InMemoryJobQueue, Job, JobContext, JobQueue, JobState, RedisJobQueue, Worker, task
from svc_infra.jobs.workers import worker
from tests.jobs.working import UnreliableQueue, until, until_state, working


@task
async def nothing() -> None: ...


class Gate:
    """A task that waits until it is let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

        @task(name="gated")
        async def gated() -> str:
            await self.open.wait()
            return "done"

        self.task = gated


class SlowToClaim(InMemoryJobQueue):
    """Claims, and answers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed = asyncio.Event()
        self.answer = asyncio.Event()

    async def reserve(self, **terms: Any) -> list[Job]:
        jobs = await super().reserve(**terms)
        if jobs:
            self.claimed.set()
            await self.answer.wait()
        return jobs


@pytest.fixture
def queue() -> InMemoryJobQueue:
    return InMemoryJobQueue()


async def test_a_stopped_worker_finishes_what_it_runs_and_claims_nothing_more(queue: InMemoryJobQueue) -> None:
    gate = Gate()
    ids = [await gate.task.options(on=queue).enqueue() for _ in range(3)]
    one = Worker(queue, [gate.task], concurrency=2)
    running = asyncio.create_task(one.run())
    await until_state(queue, ids[1], JobState.RUNNING)
    one.stop()
    one.stop()
    gate.open.set()
    await running
    states = [job.state for job in reversed(await queue.list())]
    assert states == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.READY]


async def test_what_does_not_finish_in_time_is_cancelled_and_handed_back_unspent(queue: InMemoryJobQueue) -> None:
    gate = Gate()
    job_id = await gate.task.options(on=queue).enqueue()
    async with working(queue, gate.task, drain_seconds=0.05):
        await until_state(queue, job_id, JobState.RUNNING)
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempts, job.token, job.last_error) == (JobState.READY, 0, None, None)


async def test_jobs_at_hand_that_have_not_begun_are_handed_back_with_the_stop(queue: InMemoryJobQueue) -> None:
    gate = Gate()
    ids = await gate.task.options(on=queue).enqueue_many([{}] * 5)
    one = Worker(queue, [gate.task], concurrency=1, prefetch=3, drain_seconds=60)
    running = asyncio.create_task(one.run())
    await until_state(queue, ids[3], JobState.RUNNING)
    assert (await queue.stats()).counts[JobState.RUNNING] == 4  # one that runs, and three at hand
    one.stop()
    for job_id in ids[1:]:
        assert (await until_state(queue, job_id, JobState.READY)).attempts == 0
    assert not running.done()
    gate.open.set()
    await running
    assert (await until_state(queue, ids[0])).state is JobState.SUCCEEDED


async def test_stopping_at_once_does_not_wait_for_the_drain(queue: InMemoryJobQueue) -> None:
    gate = Gate()
    job_id = await gate.task.options(on=queue).enqueue()
    one = Worker(queue, [gate.task], drain_seconds=60)
    running = asyncio.create_task(one.run())
    await until_state(queue, job_id, JobState.RUNNING)
    one.stop()
    await asyncio.sleep(0)
    assert not running.done()
    one.stop(at_once=True)
    async with asyncio.timeout(5):
        await running
    assert (await until_state(queue, job_id, JobState.READY)).attempts == 0


async def test_a_cancelled_worker_hands_its_jobs_back(queue: InMemoryJobQueue) -> None:
    gate = Gate()
    job_id = await gate.task.options(on=queue).enqueue()
    running = asyncio.create_task(Worker(queue, [gate.task], drain_seconds=60).run())
    await until_state(queue, job_id, JobState.RUNNING)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await until_state(queue, job_id, JobState.READY)).attempts == 0


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("steps", range(-6, 7))
async def test_jobs_that_arrive_with_the_stop_are_handed_back_without_having_run(at_once: bool, steps: int) -> None:
    queue, runs = SlowToClaim(), []

    @task
    async def run() -> None:
        runs.append(1)
        await asyncio.Event().wait()

    job_id = await run.options(on=queue).enqueue()
    one = Worker(queue, [run], drain_seconds=0.05)
    running = asyncio.create_task(one.run())
    await queue.claimed.wait()
    first, second = (lambda: one.stop(at_once=at_once), queue.answer.set)[:: 1 if steps >= 0 else -1]
    first()
    for _ in range(abs(steps)):  # of the event loop: every way in which the two can meet
        await asyncio.sleep(0)
    second()
    await running
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempts) == (JobState.READY, 0)
    assert steps < 0 or runs == []


async def stops_in(queue: JobQueue, idle: Callable[[], bool | Awaitable[bool]]) -> float:
    """How many seconds an idle worker takes to stop; the best of a few, for a busy machine takes its own."""
    taken = []
    for _ in range(5):
        one = Worker(queue, [nothing], poll_interval_seconds=60)
        running = asyncio.create_task(one.run())
        await until(idle)
        stopped = time.perf_counter()
        one.stop()
        await asyncio.wait_for(running, 20)
        taken.append(time.perf_counter() - stopped)
        if taken[-1] < 0.1:
            break
    return min(taken)


async def test_an_idle_worker_stops_within_a_tenth_of_a_second() -> None:
    queue = UnreliableQueue()
    assert await stops_in(queue, lambda: queue.calls[-1:] == ["wait"]) < 0.1


async def test_an_idle_worker_on_valkey_stops_within_a_tenth_of_a_second(valkey_url: str) -> None:
    queue = RedisJobQueue(valkey_url)

    async def blocked() -> bool:
        return int((await queue._client.info("clients"))["blocked_clients"]) == 1

    assert await stops_in(queue, blocked) < 0.1
    await queue.close()


async def test_a_busy_worker_starts_nothing_a_tenth_of_a_second_after_its_stop(valkey_url: str) -> None:
    queue, begun = RedisJobQueue(valkey_url), 0

    @task
    async def brief() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0.001)

    ids = await brief.options(on=queue).enqueue_many([{}] * 500)
    one = Worker(queue, [brief], concurrency=5, prefetch=5)
    running = asyncio.create_task(one.run())
    await until(lambda: begun >= 20)
    stopped = datetime.now(UTC)
    one.stop()
    await running
    jobs = [job for job_id in ids if (job := await queue.get(job_id)) is not None]
    starts = [job.started_at for job in jobs if job.state is JobState.SUCCEEDED and job.started_at]
    assert 20 <= len(starts) == begun < 500
    assert max(starts) <= stopped + timedelta(seconds=0.1)
    assert {(job.state, job.attempts) for job in jobs} == {(JobState.SUCCEEDED, 1), (JobState.READY, 0)}
    await queue.close()


async def test_a_worker_stopped_before_it_starts_claims_nothing() -> None:
    queue = UnreliableQueue()
    one = Worker(queue, [nothing])
    one.stop()
    await one.run()
    assert queue.calls == []


async def test_a_handler_that_fails_because_it_is_cancelled_is_handed_back_too(queue: InMemoryJobQueue) -> None:
    @task
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("connection lost") from None

    job_id = await stubborn.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, stubborn, drain_seconds=0.05):
        await until_state(queue, job_id, JobState.RUNNING)
    assert (await until_state(queue, job_id, JobState.READY)).attempts == 0


async def test_a_handler_that_finishes_although_it_is_cancelled_has_finished(queue: InMemoryJobQueue) -> None:
    @task
    async def deaf() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return ""

    job_id = await deaf.options(on=queue).enqueue()
    async with working(queue, deaf, drain_seconds=0.05):
        await until_state(queue, job_id, JobState.RUNNING)
    assert (await until_state(queue, job_id)).result == "done all the same"


async def test_a_function_in_a_thread_sees_that_it_should_stop_and_is_handed_back(queue: InMemoryJobQueue) -> None:
    @task
    def polite(mine: JobContext) -> None:
        never = threading.Event()
        while not mine.cancelled:
            never.wait(0.005)
        raise InterruptedError

    job_id = await polite.options(on=queue).enqueue()
    async with working(queue, polite, drain_seconds=0.05):
        await until_state(queue, job_id, JobState.RUNNING)
    assert (await until_state(queue, job_id, JobState.READY)).attempts == 0


async def test_a_function_that_cannot_be_stopped_is_left_to_its_lease(
    queue: InMemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "CANCEL_GRACE_SECONDS", 0.05)
    go_on = threading.Event()

    @task
    def deaf() -> None:
        go_on.wait(10)

    job_id = await deaf.options(on=queue).enqueue()
    async with working(queue, deaf, drain_seconds=0.05):
        await until_state(queue, job_id, JobState.RUNNING)
    job = await until_state(queue, job_id, JobState.RUNNING)
    assert job.attempts == 1
    go_on.set()


async def test_a_handler_that_ignores_every_cancellation_does_not_keep_the_worker(
    queue: InMemoryJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "CANCEL_GRACE_SECONDS", 0.05)
    go_on = asyncio.Event()

    @task
    async def deaf() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    job_id = await deaf.options(on=queue).enqueue()
    async with asyncio.timeout(5):
        async with working(queue, deaf, drain_seconds=0.05):
            await until_state(queue, job_id, JobState.RUNNING)
    assert (await until_state(queue, job_id, JobState.RUNNING)).attempts == 1
    go_on.set()
    await until_state(queue, job_id)
