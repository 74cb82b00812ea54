"""Workflows: steps that wait for each other, and what becomes of them when one fails."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
from svc_infra.jobs import JobContext, JobState, Limit, Unique, task
from svc_infra.jobs.flows import Batch, FlowState, Workflow
from svc_infra.obs.context import restored
from tests.jobs.flows.flowing import Room
from tests.jobs.working import until_state


@task(name="number")
async def number(value: int) -> int:
    return value


@task(name="double")
def double(value: int) -> int:
    return 2 * value


@task(name="total")
async def total(values: list[int], note: str = "") -> str:
    return f"{note}{sum(values)}"


@task(name="fail", max_attempts=1)
async def fail() -> int:
    raise ValueError("no")


@task(name="seen")
async def seen(value: int | None) -> str:
    return f"saw {value}"


@task(name="give-up", max_attempts=2)
async def fail_by_type(value: str) -> None: ...


TASKS = (number, double, total, fail, seen, fail_by_type)


async def test_results_fan_out_and_in(flowing: Room) -> None:
    flow = Workflow("sums")
    first = flow.add(number, {"value": 3})
    doubles = [flow.add(double, {"value": first}) for _ in range(3)]
    flow.add(total, {"values": doubles, "note": "sum "}, name="end")
    ended = await flowing.run(flow, *TASKS)
    assert (ended.state, ended.total, ended.succeeded, ended.active) == (FlowState.SUCCEEDED, 5, 5, 0)
    steps = await flowing.steps(ended.id)
    assert list(steps) == ["number", "double", "double-2", "double-3", "end"]
    assert steps["end"].result == "sum 18"
    assert steps["end"].after == ("double", "double-2", "double-3")


async def test_a_step_starts_after_those_that_it_waits_for(flowing: Room) -> None:
    order: list[str] = []

    @task
    async def note(name: str) -> None:
        order.append(name)

    flow = Workflow("order")
    a, b = (flow.add(note, {"name": name}, name=name) for name in "ab")
    flow.add(note, {"name": "c"}, after=[a, b])
    assert (await flowing.run(flow, note)).state is FlowState.SUCCEEDED
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["c"]


async def test_a_failed_step_fails_the_flow_and_nothing_more_starts(flowing: Room) -> None:
    flow = Workflow("broken")
    bad = flow.add(fail)
    fine = flow.add(number, {"value": 1})
    flow.add(seen, {"value": bad})
    flow.add(total, {"values": [fine, bad]})
    ended = await flowing.run(flow, *TASKS)
    assert (ended.state, ended.failed) == (FlowState.FAILED, 1)
    steps = await flowing.steps(ended.id)
    assert steps["fail"].state == "failed"
    assert str(steps["fail"].error).startswith("ValueError: no")
    assert [steps[name].state for name in ("seen", "total")] == ["skipped", "skipped"]
    assert steps["seen"].job_id is None


async def test_a_failure_that_is_ignored_is_a_result_of_none(flowing: Room) -> None:
    flow = Workflow("lenient")
    flow.add(seen, {"value": flow.add(fail, on_failure="ignore")})
    ended = await flowing.run(flow, *TASKS)
    assert (ended.state, ended.succeeded, ended.ignored) == (FlowState.SUCCEEDED, 1, 1)
    steps = await flowing.steps(ended.id)
    assert (steps["fail"].state, steps["seen"].result) == ("ignored", "saw None")


async def test_a_result_that_does_not_fit_the_next_step_fails_it(flowing: Room) -> None:
    flow = Workflow("types")
    flow.add(fail_by_type.options(max_attempts=1), {"value": flow.add(number, {"value": 1})})
    ended = await flowing.run(flow, *TASKS)
    error = (await flowing.steps(ended.id))["give-up"].error
    assert ended.state is FlowState.FAILED
    assert "valid string" in str(error)


async def test_results_that_are_too_large_together_fail_the_step_that_takes_them(flowing: Room) -> None:
    @task
    async def large() -> str:
        return "x" * 600_000

    @task
    async def join(parts: list[str]) -> None: ...

    flow = Workflow("large")
    flow.add(join, {"parts": [flow.add(large, name="a"), flow.add(large, name="b")]}, name="end")
    ended = await flowing.run(flow, large, join)
    assert ended.state is FlowState.FAILED
    assert "1,048,576" in str((await flowing.steps(ended.id))["end"].error)


async def test_a_retried_flow_goes_on_from_its_failed_steps(flowing: Room) -> None:
    ran: list[str] = []

    @task(max_attempts=1)
    async def flaky(name: str) -> str:
        ran.append(name)
        if name == "b" and ran.count("b") == 1:
            raise ValueError
        return name

    flow = Workflow("again")
    a = flow.add(flaky, {"name": "a"}, name="a")
    b = flow.add(flaky, {"name": "b"}, name="b", after=[a])
    flow.add(flaky, {"name": "c"}, name="c", after=[b])
    ended = await flowing.run(flow, flaky)
    assert ended.state is FlowState.FAILED
    await flowing.flows.retry(ended.id)
    assert await flowing.states(ended.id) == {"a": "succeeded", "b": "enqueued", "c": "waiting"}
    again = await flowing.work(ended.id, flaky)
    assert (again.state, again.run, again.failed, again.succeeded) == (FlowState.SUCCEEDED, 2, 0, 3)
    assert ran == ["a", "b", "b", "c"]


async def test_a_running_or_a_successful_flow_is_not_retried(flowing: Room) -> None:
    flow = Workflow("once")
    flow.add(number, {"value": 1})
    flow_id = await flow.start(on=flowing.flows)
    with pytest.raises(ConflictError, match="running"):
        await flowing.flows.retry(flow_id)
    await flowing.work(flow_id, *TASKS)
    with pytest.raises(ConflictError, match="succeeded"):
        await flowing.flows.retry(flow_id)
    with pytest.raises(NotFoundError):
        await flowing.flows.retry("nothing")


async def test_a_cancelled_flow_starts_nothing_more_and_stops_what_runs(flowing: Room) -> None:
    started = asyncio.Event()

    @task
    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    flow = Workflow("stopped")
    flow.add(seen, {"value": 1}, after=[flow.add(hang)])
    flow.add(number.options(delay_seconds=3600), {"value": 1})
    flow_id = await flow.start(on=flowing.flows)
    async with flowing.working(hang, *TASKS, lease_seconds=0.5):
        await started.wait()
        await until_state(flowing.queue, f"flow:{flow_id}:number:1", JobState.READY)
        await flowing.flows.cancel(flow_id)
        ended = await flowing.flows.wait_for(flow_id, 10)
    assert (ended.state, ended.failed) == (FlowState.CANCELLED, 0)
    assert set((await flowing.states(flow_id)).values()) == {"cancelled"}
    with pytest.raises(ConflictError, match="cancelled"):
        await flowing.flows.cancel(flow_id)


async def test_a_cancelled_flow_can_be_retried(flowing: Room) -> None:
    flow = Workflow("later")
    flow.add(seen, {"value": flow.add(number, {"value": 1})})
    flow_id = await flow.start(on=flowing.flows)
    await until_state(flowing.queue, f"flow:{flow_id}:number:1", JobState.READY)
    await flowing.flows.cancel(flow_id)
    assert (await flowing.flows.wait_for(flow_id, 1)).state is FlowState.CANCELLED
    await flowing.flows.retry(flow_id)
    ended = await flowing.work(flow_id, *TASKS)
    assert (ended.state, ended.cancel_requested) == (FlowState.SUCCEEDED, False)


async def test_a_step_that_somebody_cancels_fails_its_flow(flowing: Room) -> None:
    flow = Workflow("part")
    flow.add(seen, {"value": flow.add(number.options(delay_seconds=3600), {"value": 1})})
    flow_id = await flow.start(on=flowing.flows)
    await until_state(flowing.queue, f"flow:{flow_id}:number:1", JobState.READY)
    await flowing.queue.cancel(f"flow:{flow_id}:number:1")
    assert await flowing.sweep() == 1
    assert (await flowing.flows.wait_for(flow_id, 1)).state is FlowState.FAILED
    assert await flowing.states(flow_id) == {"number": "cancelled", "seen": "skipped"}


async def test_a_flow_starts_with_its_unit_of_work_or_not_at_all(flowing: Room) -> None:
    flow = Workflow("together")
    flow.add(number, {"value": 1})
    with pytest.raises(KeyError):
        async with flowing.db.session() as session:
            await flow.start(flow_id="lost", session=session, on=flowing.flows)
            raise KeyError
    async with flowing.db.session() as session:
        await flow.start(flow_id="kept", session=session, on=flowing.flows)
    assert await flowing.flows.get("lost") is None
    assert (await flowing.work("kept", *TASKS)).state is FlowState.SUCCEEDED
    assert [job.id for job in await flowing.queue.list()] == ["flow:kept:number:1"]


async def test_starting_the_same_id_again_changes_nothing(flowing: Room) -> None:
    for value in (1, 2):
        flow = Workflow("same")
        flow.add(seen, {"value": value})
        assert await flow.start(flow_id="same", on=flowing.flows) == "same"
    await flowing.work("same", *TASKS)
    assert (await flowing.steps("same"))["seen"].result == "saw 1"


async def test_every_job_of_a_flow_carries_the_context_of_whoever_started_it(flowing: Room) -> None:
    told: list[tuple[str | None, str]] = []

    @task
    async def tell(context: JobContext) -> None:
        told.append((context.flow_id, context.job.tenant))

    flow = Workflow("whose")
    flow.add(tell, after=[flow.add(tell)])
    flow.on_complete(tell)
    with restored({"tenant_id": "acme"}):
        flow_id = await flow.start(on=flowing.flows)
    await flowing.work(flow_id, tell)
    assert told == [(flow_id, "acme")] * 3
    assert [one.id for one in await flowing.flows.list(tenant="acme")] == [flow_id]
    assert await flowing.flows.list(tenant="other") == []


async def test_the_effects_of_a_step_and_the_next_job_are_stored_together(flowing: Room) -> None:
    @task(max_attempts=3)
    async def write(context: JobContext, session: AsyncSession) -> int:
        await session.execute(text("INSERT INTO effects (number) VALUES (7)"))
        if context.attempt == 1:
            raise ValueError
        return 7

    async with flowing.db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer)"))
    flow = Workflow("effects")
    flow.add(seen, {"value": flow.add(write)})
    ended = await flowing.run(flow, write, seen)
    assert (await flowing.steps(ended.id))["seen"].result == "saw 7"
    async with flowing.db.session(read_only=True) as session:
        assert (await session.scalars(text("SELECT number FROM effects"))).all() == [7]


async def test_callbacks_run_when_it_is_time(flowing: Room) -> None:
    for task_of_flow, expected in ((number, {"on_success", "on_complete"}), (fail, {"on_failure", "on_complete"})):
        called: list[str] = []

        @task
        async def call(name: str, called: list[str] = called) -> None:
            called.append(name)

        flow = Workflow("called")
        flow.add(task_of_flow, {"value": 1} if task_of_flow is number else {})
        flow.on_success(call, {"name": "on_success"})
        flow.on_failure(call, {"name": "on_failure"})
        flow.on_complete(call, {"name": "on_complete"})
        ended = await flowing.run(flow, call, *TASKS)
        states = await flowing.states(ended.id)
        assert {name for name in states if name.startswith("on_") and states[name] == "succeeded"} == expected


async def test_flows_are_listed_newest_first_in_pages(flowing: Room) -> None:
    ids = [await Batch(name).start(on=flowing.flows) for name in ("a", "b", "a")]
    assert [one.id for one in await flowing.flows.list()] == ids[::-1]
    assert [one.id for one in await flowing.flows.list(limit=1, before=ids[2])] == [ids[1]]
    assert [one.id for one in await flowing.flows.list(name="a", state=FlowState.SUCCEEDED)] == [ids[2], ids[0]]
    assert await flowing.flows.list(state=FlowState.RUNNING) == []


async def test_old_flows_are_purged_and_failed_ones_kept(flowing: Room) -> None:
    bad = Workflow("bad")
    bad.add(fail)
    failed = (await flowing.run(bad, *TASKS)).id
    empty = await Batch("empty").start(on=flowing.flows)
    assert await flowing.flows.purge(older_than_seconds=3600) == 0
    assert await flowing.flows.purge(older_than_seconds=0) == 1
    assert await flowing.flows.get(empty) is None
    assert await flowing.flows.get(failed) is not None
    assert await flowing.flows.purge(older_than_seconds=0, failed=True) == 1
    assert await flowing.flows.steps(failed) == []


def test_a_flow_that_cannot_work_is_refused_when_it_is_made() -> None:
    flow, other = Workflow("one"), Workflow("other")
    step = other.add(number, {"value": 1})
    unique = task(name="u", unique=Unique("u"))(number.function)
    limited = task(name="l", limit=Limit("l:{value}", concurrency=1))(number.function)
    own = flow.add(number, {"value": 1})
    for error, match, wrong in (
        (ConfigurationError, "no step of flow one", lambda: flow.add(double, {"value": step})),
        (ConfigurationError, "no step of flow one", lambda: flow.add(double, {"value": 1}, after=[step])),
        (ConfigurationError, "already", lambda: flow.add(number, {"value": 1}, name="number")),
        (ConfigurationError, "already", lambda: flow.add(number, {"value": 1}, name="on_success")),
        (ConfigurationError, "`unique`", lambda: flow.add(unique, {"value": 1})),
        (ConfigurationError, "limit", lambda: flow.add(limited, {"value": own})),
        (ConfigurationError, "nothing but steps", lambda: flow.add(total, {"values": [own, 1]})),
        (ConfigurationError, "on_failure", lambda: flow.add(double, {"value": 1}, on_failure="panic")),  # type: ignore[arg-type]
        (ConfigurationError, "job id", lambda: flow.add(double.options(job_id="x"), {"value": 1})),
        (ConfigurationError, "no step's result", lambda: flow.on_success(double, {"value": own})),
        (ValidationError, "value", lambda: flow.add(number, {"value": "x"})),
        (ValidationError, "value", lambda: flow.add(number)),
        (ValidationError, "no parameter 'other'", lambda: flow.add(number, {"value": 1, "other": own})),
        (ValidationError, "priority", lambda: flow.add(number.options(priority=5000), {"value": 1})),
        (ValidationError, "name", lambda: flow.add(number, {"value": 1}, name="a b")),
        (ValidationError, "100", lambda: flow.add(number, {"value": 1}, name="a" * 101)),
        (ValidationError, "name", lambda: Workflow("")),
    ):
        with pytest.raises(error, match=match):
            wrong()
    assert list(flow.steps) == ["number"]


async def test_a_flow_needs_an_app_with_flows() -> None:
    with pytest.raises(ConfigurationError, match="add_flows"):
        await Workflow("nowhere").start()
