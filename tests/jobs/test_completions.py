"""Telling the queue of what succeeded: many at once, each only when it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from svc_infra.config import Settings
from svc_infra.errors import UnavailableError
from svc_infra.jobs import InMemoryJobQueue, JobState, task
from svc_infra.jobs.queue import Completion
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import Wiring
from tests.jobs.working import measured, until, until_state, working


class Told(InMemoryJobQueue):
    """Notes how many completions each call told of; stores them when it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        self.sizes.append(len(completions))
        await self.open.wait()
        return await super().ack_many(completions)


@pytest.fixture
def wiring() -> Wiring:
    wiring = Wiring(Settings())
    wiring.provide(Metrics, Metrics(CollectorRegistry()))
    return wiring


@task
async def nothing() -> None: ...


def succeeded(wiring: Wiring, name: str = nothing.name) -> float:
    return measured(wiring, "jobs_finished_total", task=name, outcome="succeeded")


async def all_succeeded(queue: InMemoryJobQueue, count: int) -> None:
    async def reached() -> bool:
        return (await queue.stats()).counts[JobState.SUCCEEDED] == count

    await until(reached)


async def test_what_ends_together_is_told_in_one_call() -> None:
    queue = Told()
    await nothing.options(on=queue).enqueue_many([{}] * 100)
    async with working(queue, nothing, concurrency=50):
        await all_succeeded(queue, 100)
    assert sum(queue.sizes) == 100
    assert len(queue.sizes) <= 4


async def test_what_ends_while_a_call_is_under_way_goes_with_the_next(wiring: Wiring) -> None:
    queue = Told()
    queue.open.clear()
    async with working(queue, nothing, concurrency=1, wiring=wiring):
        await nothing.options(on=queue).enqueue()
        await until(lambda: queue.sizes == [1])
        await nothing.options(on=queue).enqueue_many([{}] * 5)
        await until(lambda: measured(wiring, "jobs_started_total", task=nothing.name) == 6)
        assert (queue.sizes, succeeded(wiring)) == ([1], 0)  # begun, and none of them counts as done
        queue.open.set()
        await all_succeeded(queue, 6)
        await until(lambda: succeeded(wiring) == 6)
    assert queue.sizes == [1, 5]


async def test_a_worker_whose_queue_is_far_behind_begins_nothing_more(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.jobs.workers.completions.COMPLETIONS_LIMIT_JOBS", 4)
    queue = Told()
    queue.open.clear()
    await nothing.options(on=queue).enqueue_many([{}] * 40)
    async with working(queue, nothing, concurrency=2, wiring=wiring):
        await until(lambda: measured(wiring, "jobs_started_total", task=nothing.name) >= 6)
        for _ in range(50):
            await asyncio.sleep(0)
        assert measured(wiring, "jobs_started_total", task=nothing.name) <= 8
        queue.open.set()
        await all_succeeded(queue, 40)
    assert max(queue.sizes) <= 4


async def test_a_completion_whose_answer_was_lost_is_no_stale_one(wiring: Wiring) -> None:
    class LosesAnswers(Told):
        async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
            refused = await super().ack_many(completions)
            if len(self.sizes) == 1:
                raise UnavailableError("The connection broke after the commit.")
            return refused

    queue = LosesAnswers()
    job_id = await nothing.options(on=queue).enqueue()
    async with working(queue, nothing, wiring=wiring):
        await until_state(queue, job_id)
        await until(lambda: succeeded(wiring) == 1)
    assert (queue.sizes, measured(wiring, "jobs_stale_total")) == ([1, 1], 0)


async def test_one_completion_that_cannot_be_stored_fails_its_own_job_only() -> None:
    class RefusesNul(Told):
        async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
            if any(one.result == "\0" for one in completions):
                raise ValueError("no NUL here")
            return await super().ack_many(completions)

    @task(max_attempts=1)
    async def echo(text: str) -> str:
        return text

    queue = RefusesNul()
    ids = await echo.options(on=queue).enqueue_many({"text": text} for text in ("a", "\0", "b"))
    async with working(queue, echo):
        states = [(await until_state(queue, job_id)).state for job_id in ids]
        bad = await until_state(queue, ids[1])
    assert states == [JobState.SUCCEEDED, JobState.DEAD, JobState.SUCCEEDED]
    assert str(bad.last_error).startswith("ValueError: no NUL here")


async def test_a_completion_that_waits_keeps_its_lease() -> None:
    queue = Told()
    beats: list[set[str]] = []

    async def heartbeat(jobs: Sequence[Any], *, lease_seconds: float = 15.0) -> Any:
        beats.append({job.id for job in jobs})
        return await InMemoryJobQueue.heartbeat(queue, jobs, lease_seconds=lease_seconds)

    queue.heartbeat = heartbeat  # type: ignore[method-assign]
    queue.open.clear()
    job_id = await nothing.options(on=queue).enqueue()
    async with working(queue, nothing, lease_seconds=0.1):
        await until(lambda: queue.sizes == [1])
        await until(lambda: beats.count({job_id}) >= 9)  # three leases
        assert await queue.reserve(worker_id="other") == []
        queue.open.set()
        assert (await until_state(queue, job_id)).attempts == 1


async def test_what_waits_to_be_told_is_told_before_the_worker_ends() -> None:
    queue = Told()
    queue.open.clear()
    ids = await nothing.options(on=queue).enqueue_many([{}] * 20)
    async with working(queue, nothing, concurrency=20):
        await until(lambda: bool(queue.sizes))
        asyncio.get_running_loop().call_later(0.05, queue.open.set)
    assert [(await until_state(queue, job_id)).state for job_id in ids] == [JobState.SUCCEEDED] * 20
