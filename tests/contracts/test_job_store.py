"""What every job queue does, whatever keeps its jobs: questions, second chances, waiting and transactions."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from svc_infra.db import Outbox
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, Backend, claim, claim_one, kept

# ------------------------------------------------------------------------------------------------------------ questions


async def in_every_state(queue: AnyQueue) -> dict[JobState, str]:
    """One job in each state; the ready one is delayed by an hour."""
    for name in ("succeeded", "dead", "cancelled", "running"):
        await queue.enqueue(name, job_id=name)
    await queue.cancel("cancelled")
    dead, _running, succeeded = sorted(await claim(queue, limit=3), key=lambda job: job.name)
    await queue.ack(succeeded)
    await queue.fail(dead, error="hopeless", dead=True)
    await queue.enqueue("ready", job_id="ready", delay_seconds=3600)
    return {state: state.value for state in JobState}


async def test_an_unknown_job_is_none(queue: AnyQueue) -> None:
    assert await queue.get("nobody") is None


async def test_the_newest_jobs_are_listed_first(queue: AnyQueue, clock: FakeClock) -> None:
    for number in range(5):
        await queue.enqueue("a", {"n": number}, priority=number % 2, delay_seconds=float(number % 3))
        clock.advance(1)
    assert [job.payload["n"] for job in await queue.list()] == [4, 3, 2, 1, 0]
    assert [job.payload["n"] for job in await queue.list(limit=2)] == [4, 3]


async def test_jobs_are_listed_by_state(queue: AnyQueue) -> None:
    for state, job_id in (await in_every_state(queue)).items():
        assert [(job.id, job.state) for job in await queue.list(state=state)] == [(job_id, state)]


async def test_jobs_are_listed_by_queue_and_state(queue: AnyQueue) -> None:
    await queue.enqueue("a", queue="mail")
    await queue.enqueue("b")
    await queue.enqueue("c", queue="mail")
    await claim_one(queue, queues=["mail"])
    assert {job.name for job in await queue.list(queue="mail")} == {"a", "c"}
    assert [job.name for job in await queue.list(queue="mail", state=JobState.RUNNING)] == ["a"]
    assert await queue.list(queue="other") == []


async def test_every_state_is_counted(queue: AnyQueue) -> None:
    assert (await queue.stats()).counts == dict.fromkeys(JobState, 0)
    await in_every_state(queue)
    assert (await queue.stats()).counts == dict.fromkeys(JobState, 1)


async def test_the_age_of_the_oldest_due_job_is_told(queue: AnyQueue, clock: FakeClock) -> None:
    assert (await queue.stats()).oldest_due_age_seconds == 0.0
    await queue.enqueue("low", queue="other", priority=-1, delay_seconds=10)
    assert (await queue.stats()).oldest_due_age_seconds == 0.0
    clock.advance(12.5)
    await queue.enqueue("high", queue="other", priority=1)
    clock.advance(1)
    assert (await queue.stats()).oldest_due_age_seconds == 3.5
    await claim_one(queue, queues=["other"])
    assert (await queue.stats()).oldest_due_age_seconds == 3.5
    await claim_one(queue, queues=["other"])
    assert (await queue.stats()).oldest_due_age_seconds == 0.0


# ------------------------------------------------------------------------------------------------------- second chances


async def test_a_dead_job_runs_again_with_its_attempts_counted_from_zero(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a", {"n": 1}, max_attempts=1, unique_key="key")
    job = await claim_one(queue)
    await queue.progress(job, done=5, total=9)
    await queue.fail(job, error="broken")
    clock.advance(100)
    await queue.retry(job.id)
    ready = await kept(queue, job.id)
    assert (ready.state, ready.attempts, ready.crashes, ready.finished_at) == (JobState.READY, 0, 0, None)
    assert (ready.progress_done, ready.progress_total, ready.last_error) == (0, 0, "broken")
    assert ready.available_at == clock.now()
    again = await claim_one(queue)
    assert (again.id, again.attempts, again.payload) == (job.id, 1, {"n": 1})
    await queue.ack(again)


async def test_a_job_that_died_with_its_workers_runs_again(queue: AnyQueue, clock: FakeClock) -> None:
    job_id = await queue.enqueue("a", max_attempts=1)
    for _ in range(3):
        await claim_one(queue, lease_seconds=1)
        clock.advance(1)
    assert await claim(queue) == []
    await queue.retry(job_id)
    assert (await claim_one(queue)).crashes == 0


async def test_a_cancelled_job_can_be_put_back(queue: AnyQueue) -> None:
    job_id = await queue.enqueue("a")
    await queue.cancel(job_id)
    await queue.retry(job_id)
    assert [job.id for job in await claim(queue, limit=5)] == [job_id]
    assert await queue.purge(older_than_seconds=0) == 0


@pytest.mark.parametrize("state", [JobState.READY, JobState.RUNNING, JobState.SUCCEEDED])
async def test_only_dead_and_cancelled_jobs_can_be_put_back(state: JobState, queue: AnyQueue) -> None:
    job_id = (await in_every_state(queue))[state]
    with pytest.raises(ConflictError, match=state.value):
        await queue.retry(job_id)
    assert (await kept(queue, job_id)).state is state


async def test_a_cancelled_job_is_never_given_out(queue: AnyQueue, clock: FakeClock) -> None:
    now = await queue.enqueue("a", priority=3)
    later = await queue.enqueue("a", delay_seconds=5)
    for job_id in (now, later):
        await queue.cancel(job_id)
        job = await kept(queue, job_id)
        assert (job.state, job.finished_at) == (JobState.CANCELLED, clock.now())
    clock.advance(10)
    assert await claim(queue, limit=5) == []


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_a_job_that_has_finished_cannot_be_cancelled(state: JobState, queue: AnyQueue) -> None:
    job_id = (await in_every_state(queue))[state]
    with pytest.raises(ConflictError, match=state.value):
        await queue.cancel(job_id)
    assert (await kept(queue, job_id)).state is state


async def test_an_unknown_job_can_be_neither_cancelled_nor_put_back(queue: AnyQueue) -> None:
    for step in (queue.cancel, queue.retry):
        with pytest.raises(NotFoundError, match="Job nobody was not found"):
            await step("nobody")


async def test_purging_deletes_finished_jobs_of_that_age_and_keeps_the_dead_letter(
    queue: AnyQueue, clock: FakeClock
) -> None:
    await in_every_state(queue)
    clock.advance(59)
    assert await queue.purge(older_than_seconds=60) == 0
    clock.advance(1)
    await queue.enqueue("fresh", job_id="fresh")
    await queue.ack(await claim_one(queue))
    assert await queue.purge(older_than_seconds=60) == 2
    assert {job.id for job in await queue.list()} == {"fresh", "ready", "running", "dead"}


async def test_purging_is_bounded_and_begins_with_what_finished_first(queue: AnyQueue, clock: FakeClock) -> None:
    for number in range(5):
        await queue.enqueue("a", job_id=f"job-{number}")
    for job in await claim(queue, limit=5):
        clock.advance(1)
        await queue.ack(job)
    assert await queue.purge(older_than_seconds=0, limit=2) == 2
    assert sorted(job.id for job in await queue.list()) == ["job-2", "job-3", "job-4"]
    assert await queue.purge(older_than_seconds=0, limit=9) == 3


# -------------------------------------------------------------------------------------------------------------- waiting


async def test_waiting_ends_when_a_job_comes(backend: Backend) -> None:
    queue = backend.make()
    assert await claim(queue) == []
    waiting = asyncio.create_task(queue.wait(30))
    await asyncio.sleep(0)
    await queue.enqueue("a")
    await asyncio.wait_for(waiting, timeout=5)
    assert len(await claim(queue)) == 1


async def test_a_job_that_comes_between_looking_and_waiting_is_noticed(backend: Backend) -> None:
    queue = backend.make()
    assert await claim(queue, queues=["mail"]) == []
    await queue.enqueue("a", queue="mail")
    await asyncio.wait_for(queue.wait(30), timeout=5)


async def test_a_job_that_is_handed_back_wakes_a_waiting_worker(backend: Backend) -> None:
    queue = backend.make()
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.wait(0.01)  # takes the notice of the enqueueing
    waiting = asyncio.create_task(queue.wait(30))
    await asyncio.sleep(0)
    await queue.release(job)
    await asyncio.wait_for(waiting, timeout=5)


async def test_waiting_ends_after_its_time(backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.wait_for(backend.make().wait(0.05), timeout=5)
    assert loop.time() - begun >= 0.04


# --------------------------------------------------------------------------------------------------------- transactions


async def test_a_job_of_a_unit_of_work_comes_with_its_commit(backend: Backend) -> None:
    async with backend.session() as session:
        job_id = await backend.queue.enqueue("a", {"n": 1}, priority=3, session=session)
        if backend.name != "sqlite":  # whose one writer is this session
            assert await claim(backend.queue) == []
    await backend.settle()
    job = await claim_one(backend.queue)
    assert (job.id, job.payload, job.priority) == (job_id, {"n": 1}, 3)


async def test_a_job_of_a_unit_of_work_goes_with_its_rollback(backend: Backend) -> None:
    async def fail() -> None:
        async with backend.session() as session:
            await backend.queue.enqueue("a", job_id="one", session=session)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    await backend.settle()
    assert await claim(backend.queue) == []
    assert await backend.queue.get("one") is None


async def test_a_unit_of_work_stores_an_id_and_a_unique_key_once(backend: Backend) -> None:
    first = await backend.queue.enqueue("a", unique_key="key")
    async with backend.session() as session:
        assert await backend.queue.enqueue("a", unique_key="key", session=session) == first
        for _ in range(2):
            assert await backend.queue.enqueue("a", job_id="same", session=session) == "same"
    await backend.settle()
    assert {job.id for job in await backend.queue.list()} == {first, "same"}


async def test_a_unit_of_work_stores_the_context_and_the_delay(backend: Backend) -> None:
    async with backend.session() as session:
        await backend.queue.enqueue("a", delay_seconds=60, timeout_seconds=3, session=session)
    await backend.settle()
    (job,) = await backend.queue.list()
    assert timedelta(seconds=55) < job.available_at - job.created_at <= timedelta(seconds=60)
    assert job.timeout_seconds == 3


async def test_the_commit_wakes_a_waiting_worker(backend: Backend) -> None:
    queue = backend.queue
    waiting = asyncio.create_task(queue.wait(30))
    await asyncio.sleep(0)
    async with backend.session() as session:
        await queue.enqueue("a", session=session)
    await backend.settle()
    await asyncio.wait_for(waiting, timeout=5)


async def finish_with_effect(backend: Backend, job: Job, *, fails: bool = False) -> None:
    """Write a row and acknowledge the job in one unit of work."""
    async with backend.session() as session:
        await Outbox().add(session, "effects", {"of": job.id})
        await backend.queue.ack(job, result="done", session=session)
        if fails:
            raise LookupError


async def effects(backend: Backend) -> int:
    async with backend.session() as session:
        return (await session.execute(text("SELECT count(*) FROM svc_outbox"))).scalar_one()


async def test_a_job_is_done_in_the_transaction_of_its_effects_where_the_database_is_one(backend: Backend) -> None:
    await backend.queue.enqueue("a", job_id="one")
    job = await claim_one(backend.queue)
    if not isinstance(backend.queue, SqlJobQueue):
        with pytest.raises(ConfigurationError, match="SqlJobQueue"):
            await finish_with_effect(backend, job)
        assert (await kept(backend.queue, "one"), await effects(backend)) == (job, 0)
        return
    with pytest.raises(LookupError):
        await finish_with_effect(backend, job, fails=True)
    assert (await kept(backend.queue, "one"), await effects(backend)) == (job, 0)
    await finish_with_effect(backend, job)
    assert ((await kept(backend.queue, "one")).result, await effects(backend)) == ("done", 1)
