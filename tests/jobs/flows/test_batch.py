"""Batches: many jobs whose common end matters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
from svc_infra.jobs import JobContext, task
from svc_infra.jobs.flows import Batch, Flows, FlowState, StepState, Workflow
from svc_infra.jobs.flows import flows as flows_module
from tests.jobs.flows.flowing import Room


@task(name="item")
async def item(number: int) -> int:
    if number < 0:
        raise ValueError("below zero")
    return number


@task(name="sum")
async def add_up(context: JobContext, flows: Flows) -> int:
    """A callback that reads what the jobs returned."""
    steps = await flows.steps(context.flow_id or "", state=StepState.SUCCEEDED)
    return sum(step.result for step in steps if isinstance(step.result, int))


@task(name="tell")
async def tell(what: str) -> str:
    return what


def batch_of(*numbers: int) -> Batch:
    batch = Batch("items")
    for number in numbers:
        batch.add(item.options(max_attempts=1), {"number": number})
    batch.on_success(add_up)
    batch.on_failure(tell, {"what": "failed"})
    batch.on_complete(tell, {"what": "complete"})
    return batch


async def called(made: Room, flow_id: str) -> dict[str, object]:
    """What the callbacks that ran returned."""
    steps = await made.steps(flow_id)
    return {name: step.result for name, step in steps.items() if name.startswith("on_") and step.state == "succeeded"}


async def test_a_batch_that_succeeds_calls_back_once_all_its_jobs_have(flowing: Room) -> None:
    ended = await flowing.run(batch_of(*range(20)), item, add_up, tell)
    assert (ended.state, ended.total, ended.succeeded) == (FlowState.SUCCEEDED, 20, 20)
    assert await called(flowing, ended.id) == {"on_success": 190, "on_complete": "complete"}


async def test_a_failed_job_is_told_at_once_and_stops_no_other(flowing: Room) -> None:
    batch = batch_of(-1)
    batch.add(item.options(delay_seconds=3600), {"number": 1}, name="late")
    flow_id = await batch.start(on=flowing.flows)
    async with flowing.working(item, add_up, tell), asyncio.timeout(10):
        while await called(flowing, flow_id) != {"on_failure": "failed"}:
            await asyncio.sleep(0.01)
    flow = await flowing.flows.get(flow_id)
    assert flow is not None
    assert (flow.state, flow.active, flow.failed) == (FlowState.RUNNING, 1, 1)
    assert (await flowing.states(flow_id))["late"] == "enqueued"


async def test_a_batch_ends_when_all_its_jobs_have_whatever_became_of_them(flowing: Room) -> None:
    ended = await flowing.run(batch_of(-1, 2, -3), item, add_up, tell)
    assert (ended.state, ended.failed, ended.succeeded) == (FlowState.FAILED, 2, 1)
    assert await called(flowing, ended.id) == {"on_failure": "failed", "on_complete": "complete"}


async def test_a_job_whose_failure_is_ignored_fails_no_batch(flowing: Room) -> None:
    batch = batch_of(5)
    batch.add(item.options(max_attempts=1), {"number": -1}, on_failure="ignore")
    ended = await flowing.run(batch, item, add_up, tell)
    assert (ended.state, ended.ignored) == (FlowState.SUCCEEDED, 1)
    assert await called(flowing, ended.id) == {"on_success": 5, "on_complete": "complete"}


async def test_an_empty_batch_has_ended_when_it_is_started(flowing: Room) -> None:
    ended = await flowing.run(batch_of(), item, add_up, tell)
    assert (ended.state, ended.total) == (FlowState.SUCCEEDED, 0)
    assert await called(flowing, ended.id) == {"on_success": 0, "on_complete": "complete"}


async def test_a_retried_batch_repeats_what_failed_and_calls_back_again(flowing: Room) -> None:
    fails = True

    @task(name="item")
    async def flaky(number: int) -> int:
        if fails and number == 2:
            raise ValueError
        return number

    ended = await flowing.run(batch_of(1, 2, 3), flaky, add_up, tell)
    assert ended.state is FlowState.FAILED
    fails = False
    await flowing.flows.retry(ended.id)
    again = await flowing.work(ended.id, flaky, add_up, tell)
    assert (again.state, again.failed, again.succeeded) == (FlowState.SUCCEEDED, 0, 3)
    assert await called(flowing, ended.id) == {"on_success": 6, "on_complete": "complete"}


@pytest.mark.parametrize("with_session", [False, True])
async def test_a_job_adds_jobs_to_its_own_batch(flowing: Room, with_session: bool) -> None:
    def more(count: int) -> Batch:
        batch = Batch("more")
        for number in range(count):
            batch.add(item, {"number": number}, name=f"row-{number}")
        return batch

    @task(name="load", max_attempts=3)
    async def load(context: JobContext, flows: Flows) -> int:
        added = await flows.extend(context.flow_id or "", more(3 + context.attempt))
        if context.attempt == 1:
            raise ValueError("after jobs were added")
        return added

    @task(name="load", max_attempts=3)
    async def load_together(context: JobContext, flows: Flows, session: AsyncSession) -> int:
        added = await flows.extend(context.flow_id or "", more(3 + context.attempt), session=session)
        if context.attempt == 1:
            raise ValueError("after jobs were added")
        return added

    loader = load_together if with_session else load
    batch = batch_of()
    batch.add(loader, name="loader")
    ended = await flowing.run(batch, loader, item, add_up, tell)
    assert (ended.state, ended.total) == (FlowState.SUCCEEDED, 6)
    steps = await flowing.steps(ended.id)
    added = 5 if with_session else 1  # what the first attempt added is gone with its transaction, or is there already
    assert steps["loader"].result == added
    assert steps["on_success"].result == 0 + 1 + 2 + 3 + 4 + added


async def test_nothing_is_added_to_what_has_ended_is_cancelled_or_is_no_batch(flowing: Room) -> None:
    more = Batch("more")
    more.add(item, {"number": 1})
    ended = await Batch("ended").start(on=flowing.flows)
    cancelled = Batch("cancelled")
    cancelled.add(item, {"number": 1})
    workflow = Workflow("steps")
    workflow.add(item, {"number": 1})
    stopped = await cancelled.start(on=flowing.flows)
    await flowing.flows.cancel(stopped)
    for flow_id in (ended, stopped, await workflow.start(on=flowing.flows)):
        with pytest.raises(ConflictError, match="Nothing can be added"):
            await flowing.flows.extend(flow_id, more)
    with pytest.raises(NotFoundError):
        await flowing.flows.extend("nothing", more)
    with pytest.raises(ConfigurationError, match="callbacks"):
        await flowing.flows.extend(ended, batch_of())


async def test_a_thousand_jobs_are_one_batch(flowing: Room) -> None:
    batch = Batch("many")
    for number in range(1000):
        batch.add(item, {"number": number}, name=f"n{number}")
    flow_id = await batch.start(on=flowing.flows)
    flow = await flowing.flows.get(flow_id)
    assert flow is not None
    assert (flow.total, flow.active) == (1000, 1000)
    page = await flowing.flows.steps(flow_id, limit=10, skip=990)
    assert [step.name for step in page] == [f"n{number}" for number in range(990, 1000)]


async def test_flows_are_purged_a_few_steps_at_a_time(flowing: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_module, "PURGE_LIMIT_STEPS", 3)
    ids = []
    for size in (1, 8, 2, 1, 3):
        batch = Batch("cancelled")
        for number in range(size):
            batch.add(item, {"number": number})
        ids.append(await batch.start(on=flowing.flows))
        await flowing.flows.cancel(ids[-1])
    await flowing.sweep(3600)  # of jobs that were on their way to Redis
    deleted: list[int] = []

    def note(connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM svc_flow_steps"):
            deleted.append(cursor.rowcount)

    event.listen(flowing.db.engine.sync_engine, "after_cursor_execute", note)
    assert await flowing.flows.purge(older_than_seconds=-1, limit=4) == 4
    assert await flowing.flows.purge(older_than_seconds=-1) == 1
    assert (sum(deleted), max(deleted)) == (15, 3)
    assert await flowing.flows.list() == []


def test_a_batch_has_a_limit() -> None:
    class Small(Batch):
        limit_steps = 1

    batch = Small("small")
    batch.add(item, {"number": 1})
    with pytest.raises(ValidationError, match="at most 1 steps"):
        batch.add(item, {"number": 2})
    batch.on_complete(tell, {"what": "x"})
    with pytest.raises(ConfigurationError, match="already"):
        batch.on_complete(tell, {"what": "y"})
