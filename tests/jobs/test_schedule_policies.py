"""What becomes of ticks that are missed, that overlap, or that are due while their schedule is paused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.jobs import InMemoryJobQueue, Job, JobState, Scheduler, SqlJobQueue, every, task
from svc_infra.jobs.schedules import InMemoryScheduleStore, ScheduleStore, SqlScheduleStore
from svc_infra.obs.metrics import Metrics
from svc_infra.testing import FakeClock
from svc_infra.wiring import Wiring
from tests.jobs.working import START, measured

Places = tuple[InMemoryJobQueue | SqlJobQueue, ScheduleStore, FakeClock]


@task(name="work")
async def work() -> None: ...


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def places(request: pytest.FixtureRequest) -> AsyncIterator[Places]:
    """A queue, a store of schedules, and the clock of both."""
    clock = FakeClock(START)
    if request.param == "memory":
        yield InMemoryJobQueue(clock=clock), InMemoryScheduleStore(clock=clock), clock
    else:
        db = AsyncDatabase(request.getfixturevalue(f"migrated_{request.param}_url"))
        yield SqlJobQueue(db, clock=clock), SqlScheduleStore(db, clock=clock), clock
        await db.dispose()


def scheduler_of(places: Places, **policies: Any) -> Scheduler:
    """One that has just started: what matters is in the store."""
    queue, store, _ = places
    return Scheduler(queue, [every(600, work, name="s", **policies)], store=store, catch_up_seconds=0)


async def tick(places: Places, minute: float, **policies: Any) -> None:
    """Let a scheduler look at this minute after the start."""
    clock = places[2]
    clock.advance((START - clock.now()).total_seconds() + minute * 60)
    await scheduler_of(places, **policies).tick()


async def jobs(places: Places, *states: JobState) -> list[int]:
    """Of which minutes there are jobs."""
    found = [job for job in await places[0].list() if not states or job.state in states]
    return sorted(minute_of(datetime.fromisoformat(job.id.removeprefix("schedule:s:"))) for job in found)


async def ticks(places: Places) -> list[tuple[int, str, int, str | None]]:
    """Each tick's minute and outcome, how many were passed over before it, and why."""
    found = sorted(await places[1].ticks("s"), key=lambda one: one.due)
    return [(minute_of(one.due), one.outcome, one.missed, one.reason) for one in found]


def minute_of(moment: datetime) -> int:
    return round((moment - START).total_seconds() / 60)


async def started(places: Places, minute: int) -> Job:
    (job,) = await places[0].reserve(worker_id="w")
    assert job.id == f"schedule:s:{(START + timedelta(minutes=minute)).isoformat()}"
    return job


@pytest.mark.parametrize(
    ("policies", "stored", "explained"),
    [
        ({}, [10, 60], [(60, "stored", 4, "late")]),
        ({"missed": "skip"}, [10], [(60, "late", 4, "late")]),
        (
            {"missed": "run_all", "max_missed": 3},
            [10, 40, 50, 60],
            [(40, "stored", 2, "late"), (50, "stored", 0, None), (60, "stored", 0, None)],
        ),
    ],
)
async def test_what_nobody_stored_in_time_follows_the_policy_and_is_explained(
    places: Places, policies: dict[str, Any], stored: list[int], explained: list[Any]
) -> None:
    await tick(places, 0, **policies)
    await tick(places, 10.5, **policies)
    await tick(places, 65, **policies)  # nobody was there in between
    assert await jobs(places) == stored
    assert await ticks(places) == [(10, "stored", 0, None), *explained]


async def test_a_tick_that_is_less_than_a_minute_late_is_in_time(places: Places) -> None:
    for looked_at in (0, 10.9, 21.1):
        await tick(places, looked_at, missed="skip")
    assert await ticks(places) == [(10, "stored", 0, None), (20, "late", 0, None)]


@pytest.mark.parametrize(
    ("policies", "stored", "explained"),
    [
        ({}, [10, 60], [(60, "stored", 4, "paused")]),
        ({"missed": "skip"}, [10], [(60, "paused", 4, "paused")]),
        (
            {"missed": "run_all", "max_missed": 2},
            [10, 50, 60],
            [(50, "stored", 3, "paused"), (60, "stored", 0, None)],
        ),
    ],
)
async def test_what_was_due_in_a_pause_follows_the_policy_when_it_ends(
    places: Places, policies: dict[str, Any], stored: list[int], explained: list[Any]
) -> None:
    for minute in (0, 10):
        await tick(places, minute, **policies)
    await scheduler_of(places, **policies).schedules.pause("s")
    for looked_at in (20, 30, 45, 60.1):
        await tick(places, looked_at, **policies)
    assert await jobs(places) == [10]
    await scheduler_of(places, **policies).schedules.resume("s")
    await tick(places, 60.2, **policies)
    assert await jobs(places) == stored
    assert await ticks(places) == [(10, "stored", 0, None), *explained]


async def test_by_default_a_tick_does_not_mind_the_one_before(places: Places) -> None:
    for minute in (0, 10, 20):
        await tick(places, minute)
    assert await jobs(places) == [10, 20]


async def test_skip_stores_nothing_while_the_last_job_waits_or_runs(places: Places) -> None:
    for minute in (0, 10, 20):
        await tick(places, minute, overlap="skip")
    job = await started(places, 10)
    await tick(places, 30, overlap="skip")
    await places[0].ack(job)
    await tick(places, 40, overlap="skip")
    assert [outcome for _, outcome, *_ in await ticks(places)] == ["stored", "overlap", "overlap", "stored"]


async def test_of_those_that_overlap_one_waits_and_is_stored_when_the_last_job_has_ended(places: Places) -> None:
    for minute in (0, 10, 20, 30):
        await tick(places, minute, overlap="buffer_one")
    assert await jobs(places) == [10]
    assert (await scheduler_of(places, overlap="buffer_one").schedules.get("s")).waiting_due == START + timedelta(
        minutes=20
    )
    await places[0].ack(await started(places, 10))
    await tick(places, 31, overlap="buffer_one")
    assert await jobs(places) == [10, 20]
    await tick(places, 40, overlap="buffer_one")
    outcomes = [(minute, outcome) for minute, outcome, *_ in await ticks(places)]
    assert outcomes == [(10, "stored"), (20, "stored"), (30, "overlap"), (40, "waiting")]


async def test_a_job_that_waits_gives_way_to_the_next_tick_at_once(places: Places) -> None:
    for minute in (0, 10, 20):
        await tick(places, minute, overlap="cancel_previous")
    assert await jobs(places, JobState.CANCELLED) == [10]
    assert await jobs(places, JobState.READY) == [20]


async def test_a_running_job_is_cancelled_and_the_latest_tick_runs_when_it_has_ended(places: Places) -> None:
    for minute in (0, 10):
        await tick(places, minute, overlap="cancel_previous")
    job = await started(places, 10)
    for minute in (20, 30):
        await tick(places, minute, overlap="cancel_previous")
        places[2].advance(1)
    assert await jobs(places) == [10]
    assert (await places[0].heartbeat([job], lease_seconds=3600)).cancelled == {job.id}
    assert await places[0].fail(job, error="stopped", cancelled=True) is JobState.CANCELLED
    await tick(places, 31, overlap="cancel_previous")
    assert await jobs(places, JobState.READY) == [30]
    outcomes = [(minute, outcome) for minute, outcome, *_ in await ticks(places)]
    assert outcomes == [(10, "stored"), (20, "replaced"), (30, "stored")]


@pytest.mark.parametrize("overlap", ["buffer_one", "cancel_previous"])
async def test_schedulers_that_die_over_an_overlap_leave_one_job_at_a_time(
    places: Places, overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = places[1], places[1].write
    dying: list[str] = []

    async def write_and_die(*arguments: Any) -> Any:
        death = dying.pop() if dying else ""
        if death == "before":
            raise ConnectionError
        written = await write(*arguments)
        if death == "after":
            raise ConnectionError
        return written

    monkeypatch.setattr(store, "write", write_and_die)
    await tick(places, 0, overlap=overlap)
    await tick(places, 10, overlap=overlap)
    first = await started(places, 10)
    dying += ["after", "before"]  # the first one dies before, the second after
    for _ in range(3):
        await tick(places, 20, overlap=overlap)
    assert await jobs(places) == [10]
    assert (await places[0].heartbeat([first])).cancelled == ({first.id} if overlap == "cancel_previous" else set())
    await places[0].fail(first, error="stopped", cancelled=True)
    dying += ["after", "before"]
    for _ in range(3):
        await tick(places, 25, overlap=overlap)
    assert await jobs(places, JobState.READY, JobState.RUNNING) == [20]
    assert await ticks(places) == [(10, "stored", 0, None), (20, "stored", 0, None)]


async def test_missed_ticks_do_not_overlap_either(places: Places) -> None:
    policies: dict[str, Any] = {"missed": "run_all", "overlap": "buffer_one"}
    for minute in (0, 45):
        await tick(places, minute, **policies)
    outcomes = [(minute, outcome) for minute, outcome, *_ in await ticks(places)]
    assert outcomes == [(10, "stored"), (20, "waiting"), (30, "overlap"), (40, "overlap")]


async def test_a_clock_that_was_far_ahead_repeats_nothing_and_stops_nothing(places: Places) -> None:
    await tick(places, 0)
    await tick(places, 60)  # too early: 60 is stored, and those before it are passed over
    for minute in (10, 20, 60, 70):  # the first look sees that the clock went back
        await tick(places, minute)
        await tick(places, minute)
    assert await jobs(places) == [20, 60, 70]
    assert [minute for minute, *_ in await ticks(places)] == [20, 60, 70]


async def test_what_is_missed_is_counted_with_its_reason() -> None:
    wiring = Wiring(Settings(app={"env": "test"}))
    wiring.provide(Metrics, Metrics())
    clock = FakeClock(START)
    places = InMemoryJobQueue(clock=clock), InMemoryScheduleStore(clock=clock), clock
    with wiring.active():
        for minute in (0, 10, 35, 40):
            await tick(places, minute, overlap="skip")
    assert measured(wiring, "jobs_scheduled_total", schedule="s") == 1
    assert measured(wiring, "jobs_schedule_missed_total", schedule="s", reason="late") == 1
    assert measured(wiring, "jobs_schedule_missed_total", schedule="s", reason="overlap") == 2
