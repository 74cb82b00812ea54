"""Handlers that leave something behind, and workers that cannot be told apart."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from typing import Any

import pytest

from svc_infra.jobs import InMemoryJobQueue, JobState, task
from svc_infra.obs.context import Context, current, enter
from tests.jobs.working import until, until_state, working

leaked: ContextVar[str] = ContextVar("leaked", default="")


@pytest.fixture
def queue() -> InMemoryJobQueue:
    return InMemoryJobQueue()


async def test_what_a_handler_leaves_in_its_context_the_next_job_does_not_find(queue: InMemoryJobQueue) -> None:
    @task
    async def leak() -> None:
        leaked.set("secret")
        enter(Context(tenant_id="red"))

    @task
    async def look() -> list[str]:
        return [leaked.get(), current().tenant_id]

    await leak.options(on=queue).enqueue()
    second = await look.options(on=queue).enqueue()
    async with working(queue, leak, look, concurrency=1):
        assert (await until_state(queue, second)).result == ["", ""]


async def test_a_task_that_a_handler_leaves_behind_harms_no_job_and_does_not_keep_the_worker(
    queue: InMemoryJobQueue,
) -> None:
    left: list[asyncio.Task[None]] = []
    go_on = asyncio.Event()

    async def fail_later() -> None:
        await go_on.wait()
        raise RuntimeError("nobody waits for this")

    @task
    async def leak() -> None:
        left.extend((asyncio.create_task(fail_later()), asyncio.create_task(asyncio.sleep(3600))))

    @task
    async def follow() -> int:
        return 1

    first = await leak.options(on=queue).enqueue()
    async with working(queue, leak, follow):
        assert (await until_state(queue, first)).state is JobState.SUCCEEDED
        go_on.set()
        await until(left[0].done)
        second = await follow.options(on=queue).enqueue()
        assert (await until_state(queue, second)).state is JobState.SUCCEEDED
    assert str(left[0].exception()) == "nobody waits for this"
    assert not left[1].done()
    left[1].cancel()


async def test_two_workers_with_one_id_run_each_job_once(queue: InMemoryJobQueue) -> None:
    runs: Counter[int] = Counter()

    @task
    async def count(number: int) -> None:
        runs[number] += 1
        await asyncio.sleep(0)

    await count.options(on=queue).enqueue_many([{"number": number} for number in range(200)])
    twin = {"worker_id": "twin", "concurrency": 5, "lease_seconds": 1.0}
    async with working(queue, count, **twin), working(queue, count, **twin):
        await until(lambda: runs.total() >= 200)
    assert runs == dict.fromkeys(range(200), 1)
    assert (await queue.stats()).counts[JobState.SUCCEEDED] == 200


def around() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize("result", [around(), "\ud800", 2**64, b"\xff"], ids=lambda one: type(one).__name__)
async def test_a_result_that_json_cannot_express_ends_the_job_and_not_the_worker(
    queue: InMemoryJobQueue, result: object
) -> None:
    @task
    async def give() -> object:
        return result

    @task
    async def follow() -> int:
        return 1

    bad = await give.options(on=queue, max_attempts=1).enqueue()
    async with working(queue, give, follow, concurrency=1):
        job = await until_state(queue, bad)
        good = await until_state(queue, await follow.options(on=queue).enqueue())
    assert (job.state, good.state) == (JobState.DEAD, JobState.SUCCEEDED)
    assert str(job.last_error).startswith("ValidationError: ")
