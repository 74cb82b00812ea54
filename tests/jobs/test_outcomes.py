"""How attempts end, and what becomes of their jobs."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from svc_infra.jobs import Cancel, InMemoryJobQueue, Job, JobContext, JobState, Retry, Snooze, task
from svc_infra.jobs.task import Task
from svc_infra.testing import FakeClock
from tests.jobs.working import START, until, until_state, working


@pytest.fixture
def queue() -> InMemoryJobQueue:
    return InMemoryJobQueue()


async def finished(queue: InMemoryJobQueue, one: Task[..., Any], **arguments: Any) -> Job:
    """Run one job on a worker of its own until it is in a terminal state."""
    job_id = await one.options(on=queue, max_attempts=1).enqueue(**arguments)
    async with working(queue, one):
        return await until_state(queue, job_id)


@task
async def double(number: int) -> dict[str, int]:
    return {"doubled": 2 * number}


async def test_a_failure_is_tried_again_after_its_backoff_and_then_counts_for_nothing() -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)

    @task(backoff_seconds=10)
    async def flaky(mine: JobContext) -> int:
        if mine.attempt == 1:
            raise ValueError("not yet")
        return mine.attempt

    job_id = await flaky.options(on=queue).enqueue()
    async with working(queue, flaky):
        waiting = await until_state(queue, job_id, JobState.READY)
        await until(lambda: had_failed(queue, job_id))
        clock.advance(10)
        job = await until_state(queue, job_id)
    assert waiting.id == job_id
    assert (job.state, job.result, job.attempts) == (JobState.SUCCEEDED, 2, 2)


async def had_failed(queue: InMemoryJobQueue, job_id: str) -> bool:
    job = await queue.get(job_id)
    return job is not None and job.last_error is not None


async def test_a_job_out_of_attempts_is_dead_and_tells_what_was_raised_and_where(queue: InMemoryJobQueue) -> None:
    @task
    async def broken() -> None:
        raise ValueError("no such thing")

    job = await finished(queue, broken)
    assert job.state is JobState.DEAD
    first, *frames = str(job.last_error).splitlines()
    assert first == "ValueError: no such thing"
    assert len(frames) == 1
    assert "at broken (" in frames[0]
    assert "test_outcomes.py:" in frames[0]


async def test_retry_chooses_the_time_of_the_next_attempt() -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)

    @task
    async def later() -> None:
        raise Retry("the other side is busy", after_seconds=1234)

    job_id = await later.options(on=queue).enqueue()
    async with working(queue, later):
        await until(lambda: had_failed(queue, job_id))
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempts, job.last_error) == (JobState.READY, 1, "Retry: the other side is busy")
    assert (job.available_at - START).total_seconds() == 1234


async def test_cancel_ends_a_job_and_keeps_the_reason(queue: InMemoryJobQueue) -> None:
    @task
    async def pointless() -> None:
        raise Cancel("the user is gone")

    job = await finished(queue, pointless)
    assert (job.state, job.last_error) == (JobState.CANCELLED, "Cancel: the user is gone")


async def test_snooze_puts_a_job_off_and_spends_no_attempt() -> None:
    clock = FakeClock(START)
    queue = InMemoryJobQueue(clock=clock)
    ready = False

    @task
    async def wait_for_it() -> str:
        if not ready:
            raise Snooze(600)
        return "now"

    job_id = await wait_for_it.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, wait_for_it):
        for _ in range(3):
            due = clock.now() + timedelta(seconds=600)

            async def is_put_off(due: Any = due) -> bool:
                job = await queue.get(job_id)
                return job is not None and job.state is JobState.READY and job.available_at == due

            await until(is_put_off)
            clock.advance(600)
        await until(is_put_off)
        ready = True
        clock.advance(600)
        job = await until_state(queue, job_id)
    assert (job.state, job.result, job.attempts, job.last_error) == (JobState.SUCCEEDED, "now", 1, None)


async def test_a_policy_decides_by_the_error(queue: InMemoryJobQueue) -> None:
    @task(retry=lambda error, attempt: 0.0 if isinstance(error, ConnectionError) and attempt < 3 else None)
    async def picky(mine: JobContext) -> None:
        raise ConnectionError if mine.attempt == 1 else ValueError("hopeless")

    job_id = await picky.options(on=queue, max_attempts=10).enqueue()
    async with working(queue, picky):
        job = await until_state(queue, job_id)
    assert (job.state, job.attempts) == (JobState.DEAD, 2)


@pytest.mark.parametrize(
    "raised", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), BaseException("odd"), StopIteration()]
)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_whatever_a_handler_raises_only_fails_its_own_job(
    queue: InMemoryJobQueue, raised: BaseException, in_thread: bool
) -> None:
    @task(name="broken")
    async def broken() -> None:
        raise raised

    @task(name="broken")
    def broken_in_thread() -> None:
        raise raised

    one = broken_in_thread if in_thread else broken
    bad = await one.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, one, double, concurrency=1):
        job = await until_state(queue, bad)
        good = await until_state(queue, await double.options(on=queue).enqueue(number=1))
    assert job.state is JobState.DEAD
    kind = RuntimeError if isinstance(raised, StopIteration) else type(raised)  # as Python itself turns it into
    assert str(job.last_error).startswith(f"{kind.__name__}: ")
    assert good.state is JobState.SUCCEEDED


@pytest.mark.parametrize("result", [object(), {1, object()}, "x" * (1024 * 1024)], ids=["object", "set", "large"])
async def test_a_result_that_cannot_be_stored_fails_the_job(queue: InMemoryJobQueue, result: object) -> None:
    @task
    async def give() -> object:
        return result

    job = await finished(queue, give)
    assert job.state is JobState.DEAD
    assert str(job.last_error).startswith("ValidationError: ")


@pytest.mark.parametrize("by_job", [True, False])
async def test_an_attempt_that_takes_too_long_is_cancelled_and_fails(queue: InMemoryJobQueue, by_job: bool) -> None:
    cleaned_up = asyncio.Event()

    @task(timeout_seconds=0.05 if by_job else None)
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    job_id = await hang.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, hang, default_timeout_seconds=None if by_job else 0.05):
        job = await until_state(queue, job_id)
    assert cleaned_up.is_set()
    assert job.state is JobState.DEAD
    assert str(job.last_error).startswith("DeadlineExceededError: ")
    assert "at hang (" in str(job.last_error)


async def test_a_function_in_a_thread_that_takes_too_long_fails_and_keeps_its_slot(queue: InMemoryJobQueue) -> None:
    go_on = threading.Event()

    @task(timeout_seconds=0.05)
    def hang(mine: JobContext) -> None:
        go_on.wait(10)
        assert mine.cancelled

    @task
    async def follow() -> bool:
        return go_on.is_set()

    late = await hang.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, hang, follow, concurrency=1):
        job = await until_state(queue, late)
        assert str(job.last_error).startswith("DeadlineExceededError: ")
        next_id = await follow.options(on=queue).enqueue()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        assert (await until_state(queue, next_id)).result is True
