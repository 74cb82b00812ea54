"""What only the queue in memory does."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError, UnavailableError
from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.job import JobState


async def test_a_full_queue_forgets_the_job_that_finished_first() -> None:
    queue = InMemoryJobQueue(max_jobs=3)
    for job_id in ("1", "2", "3"):
        await queue.enqueue("a", job_id=job_id, unique_key=job_id)
    two, one = sorted(await queue.reserve(worker_id="w", limit=2), key=lambda job: job.id, reverse=True)
    await queue.ack(two)
    await queue.ack(one)
    await queue.enqueue("a", job_id="4")
    assert {job.id for job in await queue.list()} == {"1", "3", "4"}
    assert await queue.enqueue("a", job_id="5", unique_key="2") == "5"


async def test_a_queue_full_of_unfinished_jobs_refuses() -> None:
    queue = InMemoryJobQueue(max_jobs=2)
    await queue.enqueue("a", max_attempts=1)
    (job,) = await queue.reserve(worker_id="w")
    await queue.fail(job, error="broken")
    await queue.enqueue("a", unique_key="key")
    with pytest.raises(UnavailableError, match="full"):
        await queue.enqueue("a")
    assert await queue.enqueue("a", unique_key="key") is not None
    assert (await queue.stats()).counts[JobState.DEAD] == 1


async def test_a_handler_that_changes_its_payload_changes_nothing_that_is_kept() -> None:
    queue = InMemoryJobQueue()
    given = {"list": [1]}
    await queue.enqueue("a", given)
    given["list"].append(2)
    (job,) = await queue.reserve(worker_id="w")
    job.payload["list"].append(3)
    await queue.release(job)
    (again,) = await queue.reserve(worker_id="w")
    assert again.payload == {"list": [1]}


async def test_nothing_remains_of_purged_jobs() -> None:
    queue = InMemoryJobQueue()
    for number in range(20):
        await queue.enqueue("a", queue=f"q{number % 3}", delay_seconds=float(number % 2), unique_key=f"key-{number}")
    for job in await queue.reserve(worker_id="w", queues=["q0", "q1", "q2"], limit=5):
        await queue.ack(job)
    for job in await queue.list(state=JobState.READY):
        await queue.cancel(job.id)
    assert await queue.purge(older_than_seconds=0) == 20
    assert not any([queue._entries, queue._unique, queue._waiting, queue._running, queue._finished])


async def test_waiting_ends_when_a_job_is_due() -> None:
    queue = InMemoryJobQueue()
    await queue.enqueue("late", delay_seconds=60)
    assert await queue.reserve(worker_id="w") == []
    await asyncio.wait_for(queue.wait(30), timeout=5)  # it was told of that one
    waiting = asyncio.create_task(queue.wait(30))
    await asyncio.sleep(0)
    await queue.enqueue("soon", delay_seconds=0.05)
    await asyncio.wait_for(waiting, timeout=5)
    while not (jobs := await queue.reserve(worker_id="w")):
        await asyncio.wait_for(queue.wait(30), timeout=5)
    assert [job.name for job in jobs] == ["soon"]


async def test_a_session_that_cannot_tell_of_its_commit_is_refused() -> None:
    async with AsyncSession() as session:
        with pytest.raises(ConfigurationError):
            await InMemoryJobQueue().enqueue("a", session=session)
