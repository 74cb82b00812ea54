"""What every job queue does, whatever keeps its jobs: leases, stale attempts and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from svc_infra.errors import StaleAttemptError, ValidationError
from svc_infra.jobs.job import ERROR_LIMIT_CHARS, Job, JobState
from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, claim, claim_one, kept

MIB = 1024 * 1024

# -------------------------------------------------------------------------------------------------------------- leases


async def test_a_job_whose_lease_ended_is_given_to_another_worker(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    first = await claim_one(queue, lease_seconds=15)
    clock.advance(15)
    (second,) = await queue.reserve(worker_id="other")
    assert (second.id, second.attempts, second.crashes, second.worker_id) == (first.id, 2, 1, "other")
    assert second.token != first.token
    assert second.last_error is not None
    assert "lease ended" in second.last_error


async def test_a_job_whose_lease_ended_keeps_its_place(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("first")
    await claim_one(queue, lease_seconds=15)
    clock.advance(10)
    await queue.enqueue("second")
    clock.advance(10)
    assert [job.name for job in await claim(queue, limit=2)] == ["first", "second"]


async def test_a_heartbeat_renews_the_lease(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue, lease_seconds=15)
    for _ in range(5):
        clock.advance(14)
        assert (await queue.heartbeat([job], lease_seconds=15)).held == {job.id}
        assert await claim(queue) == []
    await queue.ack(job)


async def test_a_heartbeat_tells_which_jobs_are_still_held(queue: AnyQueue, clock: FakeClock) -> None:
    for _ in range(4):
        await queue.enqueue("a")
    done, lost, held = await claim(queue, limit=3, lease_seconds=10)
    await queue.ack(done)
    await queue.heartbeat([held], lease_seconds=60)
    clock.advance(10)
    again = await claim(queue, limit=1)
    assert [job.id for job in again] == [lost.id]
    assert (await queue.heartbeat([done, lost, held])).held == {held.id}
    assert (await queue.heartbeat(again)).held == {lost.id}
    assert (await queue.heartbeat([])).held == set()


async def test_a_lease_that_ended_unnoticed_can_still_be_renewed(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue, lease_seconds=15)
    clock.advance(60)
    assert (await queue.heartbeat([job])).held == {job.id}
    assert await claim(queue) == []


async def test_a_job_that_kills_every_worker_ends_in_the_dead_letter(queue: AnyQueue, clock: FakeClock) -> None:
    job_id = await queue.enqueue("a", max_attempts=3)
    for _ in range(3):
        await claim_one(queue, lease_seconds=15)
        clock.advance(15)
    assert await claim(queue) == []
    job = await kept(queue, job_id)
    assert (job.state, job.attempts, job.crashes, job.token) == (JobState.DEAD, 3, 3, None)
    assert job.finished_at == clock.now()
    assert job.last_error is not None
    assert "died or stalled" in job.last_error


async def test_crashes_are_counted_apart_from_errors(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    await queue.fail(await claim_one(queue), error="broken", delay_seconds=0)
    await claim_one(queue, lease_seconds=1)
    clock.advance(1)
    job = await claim_one(queue)
    assert (job.attempts, job.crashes) == (3, 1)


async def test_an_attempt_that_is_told_to_have_crashed_spends_a_crash_and_no_attempt(queue: AnyQueue) -> None:
    job_id = await queue.enqueue("a", max_attempts=2)
    states = []
    for number in range(2):
        job = await claim_one(queue)
        states.append(await queue.fail(job, error=f"killed {number}", delay_seconds=0, crashed=True))
    job = await claim_one(queue)
    assert (states, job.attempts, job.crashes) == ([JobState.READY] * 2, 3, 2)
    assert await queue.fail(job, error="plain", delay_seconds=0) is JobState.READY
    assert await queue.fail(await claim_one(queue), error="killed 2", crashed=True) is JobState.DEAD
    job = await kept(queue, job_id)
    assert (job.attempts, job.crashes, job.last_error) == (4, 3, "killed 2")


async def test_any_number_of_ended_leases_and_delays_comes_back(queue: AnyQueue, clock: FakeClock) -> None:
    for number in range(260):
        await queue.enqueue("a", delay_seconds=float(number % 2))
    clock.advance(0)
    held = await claim(queue, limit=200, lease_seconds=1)
    assert len(held) == 130
    clock.advance(1)
    seen: set[str] = set()
    while jobs := await claim(queue, limit=50):
        seen |= {job.id for job in jobs}
    assert len(seen) == 260


# ------------------------------------------------------------------------------------------------------ stale attempts

Step = Callable[[AnyQueue, Job], Coroutine[Any, Any, object]]
STEPS: dict[str, Step] = {
    "ack": lambda queue, job: queue.ack(job, result="stale"),
    "fail": lambda queue, job: queue.fail(job, error="stale"),
    "give up": lambda queue, job: queue.fail(job, error="stale", dead=True),
    "release": lambda queue, job: queue.release(job),
    "progress": lambda queue, job: queue.progress(job, done=1),
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_attempt_that_lost_its_job_cannot(step: str, queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    stale = await claim_one(queue, lease_seconds=15)
    clock.advance(15)
    current = await claim_one(queue)
    with pytest.raises(StaleAttemptError):
        await STEPS[step](queue, stale)
    assert await kept(queue, current.id) == current
    await queue.ack(current)


@pytest.mark.parametrize("step", STEPS)
async def test_an_attempt_that_has_ended_cannot(step: str, queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.ack(job, result="first")
    with pytest.raises(StaleAttemptError):
        await STEPS[step](queue, job)
    assert (await kept(queue, job.id)).result == "first"
    assert (await queue.heartbeat([job])).held == set()


async def test_a_job_that_nobody_claimed_cannot_be_finished(queue: AnyQueue) -> None:
    job = await kept(queue, await queue.enqueue("a"))
    for step in STEPS.values():
        with pytest.raises(StaleAttemptError):
            await step(queue, job)
    assert (await queue.heartbeat([job])).held == set()
    assert (await claim_one(queue)).id == job.id


# ------------------------------------------------------------------------------------------------------------- outcomes


async def test_a_finished_job_keeps_its_result(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    clock.advance(2)
    await queue.ack(job, result={"rows": [1, 2], "ok": True})
    done = await kept(queue, job.id)
    assert (done.state, done.result) == (JobState.SUCCEEDED, {"rows": [1, 2], "ok": True})
    assert (done.finished_at, done.token, done.lease_expires_at) == (clock.now(), None, None)
    clock.advance(10_000)
    assert await claim(queue) == []


async def test_a_result_that_is_no_json_is_refused_and_the_job_stays_held(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    for result in (object(), "x" * MIB):
        with pytest.raises(ValidationError):
            await queue.ack(job, result=result)
    await queue.ack(job, result="x" * (MIB - 2))
    assert len((await kept(queue, job.id)).result) == MIB - 2


async def test_a_failed_job_waits_as_long_as_it_is_told(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    assert await queue.fail(job, error="no route", delay_seconds=30) is JobState.READY
    failed = await kept(queue, job.id)
    assert (failed.state, failed.last_error, failed.token) == (JobState.READY, "no route", None)
    clock.advance(29.999)
    assert await claim(queue) == []
    clock.advance(0.001)
    assert (await claim_one(queue)).attempts == 2


async def test_a_failed_job_backs_off_exponentially_unless_told(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a", backoff_seconds=10, max_attempts=9)
    delays = []
    for attempt in range(1, 9):
        job = await claim_one(queue)
        await queue.fail(job, error="again")
        delay = ((await kept(queue, job.id)).available_at - clock.now()).total_seconds()
        assert 0 <= delay <= 10 * 2 ** (attempt - 1)
        delays.append(delay)
        clock.advance(delay)
    assert max(delays) > 10


async def test_the_last_attempt_that_fails_ends_in_the_dead_letter(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a", max_attempts=2)
    assert await queue.fail(await claim_one(queue), error="one", delay_seconds=0) is JobState.READY
    job = await claim_one(queue)
    assert await queue.fail(job, error="two", delay_seconds=0) is JobState.DEAD
    dead = await kept(queue, job.id)
    assert (dead.state, dead.attempts, dead.last_error, dead.finished_at) == (JobState.DEAD, 2, "two", clock.now())
    clock.advance(10_000)
    assert await claim(queue) == []


async def test_a_job_can_be_given_up_at_once(queue: AnyQueue) -> None:
    await queue.enqueue("a", max_attempts=9)
    job = await claim_one(queue)
    assert await queue.fail(job, error="hopeless", dead=True) is JobState.DEAD
    assert (await kept(queue, job.id)).attempts == 1


async def test_an_error_of_any_text_is_kept_and_cut(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.fail(job, error="nul \0 surrogate \ud800 " + "x" * 20_000)
    error = (await kept(queue, job.id)).last_error
    assert error is not None
    assert error.startswith("nul \\x00 surrogate \\ud800 xxx")
    assert len(error) == ERROR_LIMIT_CHARS


async def test_a_released_job_keeps_its_attempts_and_its_place(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("first", max_attempts=1)
    clock.advance(1)
    await queue.enqueue("second")
    job = await claim_one(queue)
    await queue.release(job)
    released = await kept(queue, job.id)
    assert (released.state, released.attempts, released.crashes, released.token) == (JobState.READY, 0, 0, None)
    again = await claim_one(queue)
    assert (again.id, again.attempts) == (job.id, 1)
    assert again.token != job.token


async def test_a_released_job_can_be_kept_away_for_a_while(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    await queue.release(await claim_one(queue), delay_seconds=30)
    clock.advance(29)
    assert await claim(queue) == []
    clock.advance(1)
    assert (await claim_one(queue)).attempts == 1


async def test_progress_is_kept_while_the_attempt_runs(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.progress(job, done=3, total=10)
    await queue.progress(job, done=4, total=10)
    running = await kept(queue, job.id)
    assert (running.progress_done, running.progress_total, running.token) == (4, 10, job.token)
    with pytest.raises(ValidationError):
        await queue.progress(job, done=-1)
