"""How flows hear of the ends of their jobs, whatever happens to the workers that run them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import UnavailableError
from svc_infra.jobs import Cancel, Job, JobState, task
from svc_infra.jobs.flows import FlowState, Workflow
from svc_infra.jobs.flows.flow import Outcome, StepState, step_of
from svc_infra.testing import FakeClock
from tests.jobs.flows.flowing import KINDS, Room, room
from tests.jobs.working import START, until_state, working


@task(name="one")
async def one() -> int:
    return 1


@task(name="next")
async def after(value: int) -> int:
    return value + 1


def pair() -> Workflow:
    """A step, and one that takes its result."""
    flow = Workflow("pair")
    flow.add(after, {"value": flow.add(one)})
    return flow


async def test_a_job_that_a_worker_without_flows_has_run_is_heard_of_all_the_same(flowing: Room) -> None:
    flow_id = await pair().start(on=flowing.flows)
    async with working(flowing.queue, one):
        await until_state(flowing.queue, f"flow:{flow_id}:one:1")
    assert (await flowing.steps(flow_id))["one"].state == "enqueued"
    assert await flowing.sweep() == 1
    assert await flowing.states(flow_id) == {"one": "succeeded", "next": "enqueued"}
    assert (await flowing.work(flow_id, after)).state is FlowState.SUCCEEDED
    assert (await flowing.steps(flow_id))["next"].result == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_that_kills_its_workers_fails_its_flow(kind: str, request: pytest.FixtureRequest) -> None:
    clock = FakeClock()
    async with room(kind, request.getfixturevalue, clock=clock, max_crashes=2) as made:
        flow_id = await pair().start(on=made.flows)
        await until_state(made.queue, f"flow:{flow_id}:one:1", JobState.READY)
        for _ in range(2):
            assert await made.queue.reserve(worker_id="w", lease_seconds=1)
            clock.advance(2)
        assert await made.queue.reserve(worker_id="w") == []
        assert await made.flows.ends.sweep() == 0, "it is asked too soon"
        clock.advance(30)
        assert await made.flows.ends.sweep() == 1
        flow = await made.flows.wait_for(flow_id, 1)
        assert flow.state is FlowState.FAILED
        assert "lease ended" in str((await made.steps(flow_id))["one"].error)


async def test_an_attempt_whose_step_has_succeeded_does_not_run_again(flowing: Room) -> None:
    ran = []

    @task(name="one")
    async def counted() -> int:
        ran.append(1)
        return 1

    flow_id = await pair().start(on=flowing.flows)
    job = await until_state(flowing.queue, f"flow:{flow_id}:one:1", JobState.READY)
    step = step_of(job)
    assert step is not None
    async with flowing.db.session() as session:  # a worker that died before it could tell the queue
        await flowing.flows.ends._end(session, step, Outcome(StepState.SUCCEEDED, "41"))
    async with flowing.working(counted, after):
        assert (await until_state(flowing.queue, job.id)).result == 41
        await flowing.flows.wait_for(flow_id, 10)
    assert ran == []
    assert (await flowing.steps(flow_id))["next"].result == 42


async def test_the_end_of_a_step_counts_once(flowing: Room) -> None:
    flow_id = await pair().start(on=flowing.flows)
    job = await until_state(flowing.queue, f"flow:{flow_id}:one:1", JobState.READY)
    await flowing.flows.ends.ended(job, JobState.DEAD, "first")
    await flowing.flows.ends.ended(job, JobState.DEAD, "second")
    flow = await flowing.flows.get(flow_id)
    assert flow is not None
    assert (flow.state, flow.failed, flow.active) == (FlowState.FAILED, 1, 0)
    assert (await flowing.steps(flow_id))["one"].error == "first"


async def test_an_attempt_that_has_lost_its_job_does_not_advance_the_flow(flowing: Room) -> None:
    flow_id = await pair().start(on=flowing.flows)
    await until_state(flowing.queue, f"flow:{flow_id}:one:1", JobState.READY)
    waits, go_on = asyncio.Event(), asyncio.Event()
    claims = 0

    @task(name="one")
    async def slow() -> int:
        nonlocal claims
        claims += 1
        if claims == 1:
            waits.set()
            await asyncio.shield(_wait(go_on))
            return 1
        return 20

    async def _wait(event: asyncio.Event) -> None:
        await event.wait()

    class Deaf:
        """The queue of a worker whose heartbeats do not arrive."""

        def __getattr__(self, name: str) -> Any:
            return getattr(flowing.queue, name)

        async def heartbeat(self, *_: Any, **__: Any) -> Any:
            raise UnavailableError

        def heart(self) -> None:
            return None

    async with working(Deaf(), slow, after, wiring=flowing.wiring, lease_seconds=0.3):
        await waits.wait()
        async with flowing.working(slow, after):
            await flowing.flows.wait_for(flow_id, 20)
        go_on.set()
    assert claims == 2
    assert (await flowing.steps(flow_id))["next"].result == 21


async def test_a_job_that_its_queue_has_lost_is_stored_again(flowing: Room) -> None:
    flow_id = await pair().start(on=flowing.flows)
    job_id = f"flow:{flow_id}:one:1"
    await until_state(flowing.queue, job_id, JobState.READY)
    await flowing.queue.cancel(job_id)
    await flowing.queue.purge(older_than_seconds=0)
    assert await flowing.queue.get(job_id) is None
    await flowing.sweep()
    assert await flowing.queue.get(job_id) is None, "it may be on its way"
    await flowing.sweep(400)
    assert (await flowing.work(flow_id, one, after)).state is FlowState.SUCCEEDED


async def test_a_dead_job_is_not_revived_behind_its_flows_back(flowing: Room) -> None:
    @task(name="one", max_attempts=1)
    async def broken() -> int:
        raise ValueError

    flow_id = await pair().start(on=flowing.flows)
    await flowing.work(flow_id, broken, after)
    job_id = f"flow:{flow_id}:one:1"
    await flowing.queue.retry(job_id)
    async with flowing.working(one, after):
        assert (await until_state(flowing.queue, job_id)).state is JobState.CANCELLED
    assert await flowing.states(flow_id) == {"one": "failed", "next": "skipped"}


async def test_a_callback_can_be_replayed_from_the_dead_letter(flowing: Room) -> None:
    fails = True

    @task(name="call", max_attempts=1)
    async def call() -> None:
        if fails:
            raise ValueError

    flow = Workflow("called")
    flow.add(one)
    flow.on_complete(call)
    ended = await flowing.run(flow, one, call)
    assert ended.state is FlowState.SUCCEEDED
    assert (await flowing.states(ended.id))["on_complete"] == "failed"
    fails = False
    job_id = f"flow:{ended.id}:on_complete:1"
    await flowing.queue.retry(job_id)
    async with flowing.working(call):
        assert (await until_state(flowing.queue, job_id)).state is JobState.SUCCEEDED
    assert (await flowing.states(ended.id))["on_complete"] == "succeeded"


async def test_a_handler_that_cancels_its_own_job_fails_the_flow(flowing: Room) -> None:
    @task(name="one")
    async def pointless() -> int:
        raise Cancel("nothing to do")

    ended = await flowing.run(pair(), pointless, after)
    assert ended.state is FlowState.FAILED
    assert await flowing.states(ended.id) == {"one": "cancelled", "next": "skipped"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_session", [False, True])
async def test_a_commit_that_fails_leaves_the_step_to_the_next_attempt(
    kind: str, with_session: bool, request: pytest.FixtureRequest
) -> None:
    async with room(kind, request.getfixturevalue) as made:
        tried = []
        real: Callable[..., Any] = made.flows.ends.finish

        async def unlucky(*arguments: Any, **options: Any) -> bool:
            finished = bool(await real(*arguments, **options))
            tried.append(1)
            if len(tried) == 1 and options.get("session") is not None:
                raise UnavailableError("The connection broke before the commit.")
            return finished

        made.flows.ends.finish = unlucky  # type: ignore[method-assign]

        @task(name="one")
        async def plain() -> int:
            return 1

        @task(name="one")
        async def transactional(session: AsyncSession) -> int:
            return 1

        ended = await made.run(pair(), transactional if with_session else plain, after)
        assert ended.state is FlowState.SUCCEEDED
        assert (await made.steps(ended.id))["next"].result == 2
        assert [job.name for job in await made.queue.list()].count("next") == 1


def test_the_job_of_another_flow_or_of_none_is_no_step() -> None:
    job = Job(
        id="flow:a:b:1", name="x", payload={}, queue="q", state=JobState.READY, created_at=START, available_at=START
    )
    assert step_of(job) is None
    assert step_of(replace(job, context={"flow_id": "other"})) is None
    assert step_of(replace(job, context={"flow_id": "a"})) == ("a", "b", 1)
    assert step_of(replace(job, id="flow:a:b:c", context={"flow_id": "a"})) is None
    assert step_of(replace(job, id="flow:a:b:c:7", context={"flow_id": "a"})) == ("a", "b:c", 7)
