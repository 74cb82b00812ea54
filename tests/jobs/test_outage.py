"""What the worker does when its queue does not answer, or gives it a job that it does not know."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.jobs import JobState, task
from svc_infra.jobs.retry import OUTAGE_BACKOFF_CAP_SECONDS, Outage
from svc_infra.jobs.workers.runner import UNKNOWN_TASK_DELAY_SECONDS
from tests.jobs.working import UnreliableQueue, until, until_state, working


@task
async def nothing() -> None: ...


@pytest.mark.parametrize("call", ["reserve", "wait"])
async def test_a_worker_lives_through_an_outage_and_tells_of_it_once(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue = UnreliableQueue()
    queue.down = {call}
    async with working(queue, nothing):
        await until(lambda: queue.calls.count(call) >= 4)
        queue.down = set()
        job_id = await nothing.options(on=queue).enqueue()
        assert (await until_state(queue, job_id)).state is JobState.SUCCEEDED
        await until(lambda: "jobs.queue_available" in caplog.messages)
    told = [line for line in caplog.records if line.message == "jobs.queue_unavailable"]
    assert len(told) == 1
    assert told[0].__dict__["error"].startswith("UnavailableError: The queue is down.")
    assert caplog.messages.count("jobs.queue_available") == 1


async def test_an_outcome_is_told_again_until_the_queue_answers_and_the_handler_runs_once() -> None:
    queue = UnreliableQueue()
    runs = 0

    @task
    async def count() -> int:
        nonlocal runs
        runs += 1
        return runs

    queue.down = {"ack"}
    job_id = await count.options(on=queue).enqueue()
    async with working(queue, count):
        await until(lambda: queue.calls.count("ack") >= 3)
        queue.down = set()
        job = await until_state(queue, job_id)
    assert (job.state, job.result, job.attempts, runs) == (JobState.SUCCEEDED, 1, 1, 1)


async def test_a_heartbeat_that_fails_is_repeated_sooner_and_the_job_goes_on() -> None:
    queue = UnreliableQueue()

    @task
    async def slow() -> None:
        await until(lambda: queue.calls.count("heartbeat") >= 3)
        queue.down = set()
        await until(lambda: queue.calls.count("heartbeat") >= 4)

    queue.down = {"heartbeat"}
    job_id = await slow.options(on=queue).enqueue()
    async with working(queue, slow, lease_seconds=0.3):
        assert (await until_state(queue, job_id)).state is JobState.SUCCEEDED


async def test_a_job_of_an_unknown_task_is_handed_back_unspent_for_later_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = UnreliableQueue()
    ids = [await queue.enqueue("from.the.next.release", max_attempts=1) for _ in range(2)]
    async with working(queue, nothing):
        for job_id in ids:
            await until(lambda: queue.calls.count("reserve") >= 3)
            job = await until_state(queue, job_id, JobState.READY)
            assert (job.attempts, job.last_error) == (0, None)
            assert (job.available_at - job.created_at).total_seconds() >= UNKNOWN_TASK_DELAY_SECONDS
        good = await nothing.options(on=queue).enqueue()
        assert (await until_state(queue, good)).state is JobState.SUCCEEDED
    told = [line for line in caplog.records if line.message == "job.unknown_task"]
    assert [line.__dict__["task"] for line in told] == ["from.the.next.release"]


@given(st.integers(1, 60))
def test_the_pause_grows_with_the_outage_up_to_its_limit(failures: int) -> None:
    outage = Outage()
    pauses = [outage.failed(OSError("down")) for _ in range(failures)]
    assert all(0.05 <= pause <= OUTAGE_BACKOFF_CAP_SECONDS for pause in pauses)
    assert failures < 8 or pauses[-1] >= OUTAGE_BACKOFF_CAP_SECONDS / 2
    outage.over()
    assert outage.failed(OSError("down again")) <= 0.1
