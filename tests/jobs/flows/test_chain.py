"""Chains: each step takes the result of the one before."""

from __future__ import annotations

import pytest

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs import JobContext, task
from svc_infra.jobs.flows import Chain, FlowState
from tests.jobs.flows.flowing import Room


@task(name="fetch")
async def fetch(url: str) -> list[int]:
    return [len(url), 2]


@task(name="scale")
async def scale(context: JobContext, factor: int, rows: list[int], verbose: bool = False) -> list[int]:
    return [factor * row for row in rows]


@task(name="count")
async def count() -> str:
    return "counted"


@task(name="note")
async def note(text: str = "nothing") -> str:
    return text


async def test_the_result_of_a_step_is_the_input_of_the_next(flowing: Room) -> None:
    chain = Chain("import").then(fetch, {"url": "abc"}).then(scale, {"factor": 10}).then(scale, {"factor": 2})
    ended = await flowing.run(chain, fetch, scale)
    assert (ended.kind, ended.state, ended.succeeded) == ("chain", FlowState.SUCCEEDED, 3)
    results = {name: step.result for name, step in (await flowing.steps(ended.id)).items()}
    assert results == {"1-fetch": [3, 2], "2-scale": [30, 20], "3-scale": [60, 40]}


async def test_a_step_that_takes_no_result_just_comes_after(flowing: Room) -> None:
    chain = Chain("order").then(count).then(note).then(note, into="text")
    ended = await flowing.run(chain, count, note)
    results = [step.result for step in (await flowing.steps(ended.id)).values()]
    assert results == ["counted", "nothing", "nothing"]


async def test_a_failed_step_ends_the_chain(flowing: Room) -> None:
    @task(name="fetch", max_attempts=1)
    async def broken(url: str) -> list[int]:
        raise ValueError

    ended = await flowing.run(Chain("import").then(fetch, {"url": ""}).then(scale, {"factor": 1}), broken, scale)
    assert ended.state is FlowState.FAILED
    assert await flowing.states(ended.id) == {"1-fetch": "failed", "2-scale": "skipped"}


def test_a_chain_that_cannot_work_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="first step"):
        Chain("x").then(fetch, {"url": "a"}, into="url")
    with pytest.raises(ValidationError, match="no parameter 'context'"):
        Chain("x").then(count).then(scale, {"factor": 1, "rows": []}, into="context")
    with pytest.raises(ValidationError, match="rows: Field required"):
        Chain("x").then(count).then(scale)  # the result goes to the first that is missing, and one more is
