"""Every backend beside the reference queue, and proof that a broken one would not get by."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.jobs import InMemoryJobQueue, RedisJobQueue, SqlJobQueue
from svc_infra.jobs.job import JobRequest, Unique
from svc_infra.jobs.sql.postgres_steps import PostgresSteps
from svc_infra.redis import connect
from svc_infra.testing import FakeClock
from tests.jobs.broken_backends import FAULTS, break_it
from tests.jobs.queue_machine import Place, QueueMachine

BACKENDS = {"memory": 40, "sqlite": 25, "postgres": 12, "valkey": 25}
"""How many lives each backend leads in a run; a life has up to 40 steps."""
TIMES = int(os.environ.get("STATE_MACHINE_TIMES", "1"))
"""How many times as many in a long search."""
USUAL = settings(
    stateful_step_count=40,
    phases=[Phase.generate],  # a failure is shown as it was found: to shrink it against a server takes minutes
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def opened(
    backend: str, request: pytest.FixtureRequest, *, patience_seconds: float = 30.0
) -> Iterator[type[QueueMachine]]:
    """The machine for one backend."""
    fixture = "valkey_url" if backend == "valkey" else f"migrated_{backend}_url"
    url = "" if backend == "memory" else request.getfixturevalue(fixture)
    make: Callable[..., Any] = {"memory": in_memory, "valkey": in_valkey}.get(backend, in_sql)
    with asyncio.Runner() as runner:
        the_place = Place(
            lambda clock: make(url, clock), runner, at_once=backend != "postgres", patience_seconds=patience_seconds
        )
        yield type(f"{backend.title()}Machine", (QueueMachine,), {"place": the_place})


@asynccontextmanager
async def in_memory(url: str, clock: FakeClock) -> AsyncIterator[InMemoryJobQueue]:
    yield InMemoryJobQueue(clock=clock)


@asynccontextmanager
async def in_sql(url: str, clock: FakeClock) -> AsyncIterator[SqlJobQueue]:
    database = AsyncDatabase(url)
    try:
        async with database.session() as session:
            for table in ("svc_jobs", "svc_job_queues", "svc_job_limits"):
                await session.execute(text(f"DELETE FROM {table}"))
        yield SqlJobQueue(database, clock=clock)
    finally:
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)  # its notices
        await database.dispose()


@asynccontextmanager
async def in_valkey(url: str, clock: FakeClock) -> AsyncIterator[RedisJobQueue]:
    async with connect(url) as client:
        await client.flushall()
        yield RedisJobQueue(client, clock=clock)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_observable_agrees_with_the_reference(backend: str, request: pytest.FixtureRequest) -> None:
    with opened(backend, request) as machine:
        run_state_machine_as_test(machine, settings=settings(USUAL, max_examples=BACKENDS[backend] * TIMES))


def a_cancelled_job_is_handed_back_with_a_delay(machine: QueueMachine) -> None:
    (attempt,) = machine.begin([JobRequest(name="a", payload={}, queue="mail", max_attempts=3)], 60.0).values
    machine.cancel("000")
    machine.release(attempt, 10.0)


def a_known_job_is_stored_again_with_the_key_of_another(machine: QueueMachine) -> None:
    unique = Unique("k", window_seconds=10.0, on_conflict="replace")
    known = JobRequest(name="a", payload={}, queue="mail", max_attempts=1)
    machine.enqueue([known, replace(known, unique=unique)], "")
    for _ in range(2):
        machine.enqueue_the_same_id_again("000", replace(known, payload={"n": 1}, unique=unique))
        machine.every_job_is_as_it_should_be()
        machine.advance(10.0)


STORIES = [a_cancelled_job_is_handed_back_with_a_delay, a_known_job_is_stored_again_with_the_key_of_another]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("story", STORIES)
def test_what_the_machine_has_found_stays_mended(
    backend: str, story: Callable[[QueueMachine], None], request: pytest.FixtureRequest
) -> None:
    with opened(backend, request) as made:
        machine = made()
        try:
            story(machine)
            machine.every_job_is_as_it_should_be()
        finally:
            machine.teardown()


async def test_a_clock_that_is_moved_while_postgres_sweeps_hides_no_ended_lease(
    migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    async with in_sql(migrated_postgres_url, clock) as queue:
        await queue.enqueue("a")
        (lost,) = await queue.reserve(worker_id="w1", lease_seconds=2.5)
        sweep = PostgresSteps.sweep

        async def slow(*arguments: Any) -> Any:
            swept = await sweep(*arguments)
            clock.advance(60.0)
            return swept

        clock.advance(1.0)
        with monkeypatch.context() as patch:
            patch.setattr(PostgresSteps, "sweep", slow)
            assert await queue.reserve(worker_id="w1") == []
        (found,) = await queue.reserve(worker_id="w1")
    assert (found.id, found.crashes) == (lost.id, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a failed step leaves its connection
@pytest.mark.parametrize(("backend", "fault"), FAULTS)
def test_a_broken_backend_is_caught(
    backend: str, fault: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = settings(USUAL, max_examples=400, derandomize=True, report_multiple_bugs=False)
    with opened(backend, request, patience_seconds=1.0) as machine:
        break_it(backend, fault, monkeypatch)
        with pytest.raises((AssertionError, KeyError)):
            run_state_machine_as_test(machine, settings=quick)
