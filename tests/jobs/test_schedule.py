"""Schedulers: that each tick is stored once, and what a scheduler survives."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.errors import ConfigurationError, UnavailableError, ValidationError
from svc_infra.jobs import InMemoryJobQueue, JobContext, Schedule, Scheduler, cron, every, task
from svc_infra.jobs.schedules import at as once
from svc_infra.jobs.schedules.schedules import CATCH_UP_SECONDS
from svc_infra.testing import FakeClock
from tests.jobs.working import START, until


@task
async def report(kind: str = "short") -> None: ...


@task
async def clean_up() -> None: ...


def at(hour: int, minute: int = 0, second: int = 0) -> datetime:
    return START.replace(hour=hour, minute=minute, second=second)


async def keys(queue: InMemoryJobQueue) -> list[str]:
    return sorted(str(job.id) for job in await queue.list(limit=1000))


async def test_a_tick_is_stored_when_it_is_due_with_its_payload_and_its_tasks_options() -> None:
    queue = InMemoryJobQueue()
    urgent = task(name="urgent", queue="fast", priority=3)(report.function)
    scheduler = Scheduler(queue, [every(60, urgent, {"kind": "long"})], catch_up_seconds=0)
    assert await scheduler.tick(at(12, 0, 30)) == []
    assert await scheduler.tick(at(12, 0, 59)) == []
    (job_id,) = await scheduler.tick(at(12, 1, 0))
    job = await queue.get(job_id)
    assert job is not None
    assert (job.name, job.payload, job.queue, job.priority) == ("urgent", {"kind": "long"}, "fast", 3)
    assert job.id == "schedule:urgent:2026-01-05T12:01:00+00:00"
    assert await scheduler.tick(at(12, 1, 30)) == []


async def test_many_schedulers_store_each_tick_once() -> None:
    queue = InMemoryJobQueue()
    schedules = [every(60, report), cron("*/2 * * * *", clean_up)]
    schedulers = [Scheduler(queue, schedules, catch_up_seconds=0) for _ in range(5)]
    for second in range(0, 301, 10):
        moment = at(12) + timedelta(seconds=second)
        await asyncio.gather(*(one.tick(moment) for one in schedulers))
    minutes = [f"schedule:test_schedule.report:2026-01-05T12:0{minute}:00+00:00" for minute in range(1, 6)]
    even = [f"schedule:test_schedule.clean_up:2026-01-05T12:0{minute}:00+00:00" for minute in (2, 4)]
    assert await keys(queue) == sorted([*minutes, *even])


async def test_after_a_pause_only_the_latest_missed_tick_is_stored() -> None:
    queue = InMemoryJobQueue()
    scheduler = Scheduler(queue, [every(60, report), cron("0 * * * *", clean_up)], catch_up_seconds=0)
    await scheduler.tick(at(8))
    assert len(await scheduler.tick(at(20, 30, 30))) == 2
    assert await keys(queue) == [
        "schedule:test_schedule.clean_up:2026-01-05T20:00:00+00:00",
        "schedule:test_schedule.report:2026-01-05T20:30:00+00:00",
    ]


@pytest.mark.parametrize(("minutes_late", "stored"), [(4, 1), (6, 0)])
async def test_a_scheduler_that_starts_late_catches_up_only_within_its_window(minutes_late: int, stored: int) -> None:
    queue = InMemoryJobQueue()
    scheduler = Scheduler(queue, [cron("0 12 * * *", report)])
    assert CATCH_UP_SECONDS == 300
    assert len(await scheduler.tick(at(12, minutes_late))) == stored


async def test_a_restart_without_a_database_repeats_no_tick() -> None:
    queue = InMemoryJobQueue()
    first = await Scheduler(queue, [every(60, report)]).tick(at(12, 1, 1))
    assert await Scheduler(queue, [every(60, report)]).tick(at(12, 1, 5)) == first
    assert len(await queue.list()) == 1


async def test_a_clock_that_goes_back_repeats_no_tick_and_does_not_stop_the_schedule() -> None:
    queue = InMemoryJobQueue()
    scheduler = Scheduler(queue, [every(60, report)], catch_up_seconds=0)
    for moment in (at(12, 0, 30), at(12, 1, 30), at(12, 0, 45), at(12, 1, 15), at(12, 2, 0)):
        await scheduler.tick(moment)
    assert len(await queue.list()) == 2


class Unlucky(InMemoryJobQueue):
    """Cannot store the jobs of one task."""

    refuses = report.name

    async def enqueue(self, name: str, *args: Any, **options: Any) -> str:
        if name == self.refuses:
            raise UnavailableError
        return await super().enqueue(name, *args, **options)


async def test_a_schedule_that_fails_stops_no_other_and_is_caught_up_later(caplog: pytest.LogCaptureFixture) -> None:
    queue = Unlucky()
    scheduler = Scheduler(queue, [every(60, report), every(60, clean_up)], catch_up_seconds=0)
    await scheduler.tick(at(12, 0, 30))
    for minute in (1, 2, 3):
        assert len(await scheduler.tick(at(12, minute))) == 1
    assert caplog.messages == ["jobs.schedule_failed"]
    queue.refuses = ""
    await scheduler.tick(at(12, 3, 1))
    assert [key for key in await keys(queue) if "report" in key] == [
        "schedule:test_schedule.report:2026-01-05T12:03:00+00:00"
    ]


async def test_a_running_scheduler_stores_what_becomes_due_until_it_is_stopped() -> None:
    queue, clock = InMemoryJobQueue(), FakeClock(START)
    scheduler = Scheduler(queue, clock=clock, catch_up_seconds=0)
    scheduler.add(every(0.02, report))
    running = asyncio.create_task(scheduler.run())

    async def looked() -> bool:
        return bool((await scheduler.schedules.store.look()).records)

    await until(looked)
    clock.advance(0.02)

    async def stored() -> bool:
        return len(await queue.list()) == 1

    await until(stored)
    scheduler.stop()
    scheduler.stop()
    async with asyncio.timeout(1):
        await running


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 400), min_size=1, max_size=60), st.sampled_from([7, 60, 90]))
def test_ticks_are_neither_missed_nor_doubled_whatever_the_steps_of_the_clock(steps: list[float], seconds: int) -> None:
    async def run() -> None:
        queue = InMemoryJobQueue()
        schedulers = [Scheduler(queue, [every(seconds, report)], catch_up_seconds=0) for _ in range(2)]
        now = START + timedelta(seconds=0.5)
        for one in schedulers:
            await one.tick(now)
        expected: set[str] = set()
        for number, step in enumerate(steps):
            before, now = now, now + timedelta(seconds=step)
            await schedulers[number % 2].tick(now)
            await schedulers[0].tick(now)
            due = list(grid(before, now, seconds))
            expected |= {every(seconds, report).key(due[-1])} if due else set()
        assert set(await keys(queue)) == expected

    asyncio.run(run())


def grid(after: datetime, until_: datetime, seconds: int) -> Iterator[datetime]:
    moment = START - timedelta(seconds=START.timestamp() % seconds)
    while moment <= until_:
        if moment > after:
            yield moment
        moment += timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("expression", "zone", "named"),
    [
        ("* * *", "UTC", "no cron expression"),
        ("99 * * * *", "UTC", "Bad minute"),
        ("* * * * *", "Mars/Base", "no time zone"),
        ("* * * * *", "../etc/passwd", "no time zone"),
        ("* * * * *", "", "no time zone"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused(expression: str, zone: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        cron(expression, report, tz=zone)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_an_interval_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="every"):
        every(seconds, report)


def test_a_name_that_cannot_be_part_of_a_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="schedule key"):
        every(60, report, name="with spaces")


def test_two_schedules_of_one_name_are_refused() -> None:
    scheduler = Scheduler(InMemoryJobQueue(), [every(60, report), every(60, report, name="again")])
    with pytest.raises(ConfigurationError, match="Two schedules are called again"):
        scheduler.add(every(90, report, name="again"))


def test_a_payload_that_does_not_fit_its_task_is_refused_before_it_is_due() -> None:
    wrong: Schedule = every(60, report, {"kind": 7})
    with pytest.raises(ValidationError, match="kind"):
        Scheduler(InMemoryJobQueue(), [wrong])


def test_a_policy_that_is_none_is_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"missed": "never"},
        {"overlap": "both"},
        {"max_missed": 0},
        {"max_missed": 1001},
        {"jitter_seconds": -1.0},
        {"jitter_seconds": float("nan")},
    ]
    for policies in wrong:
        with pytest.raises(ConfigurationError, match=next(iter(policies))):
            every(60, report, **policies)


async def test_a_time_that_comes_once_is_stored_once() -> None:
    queue = InMemoryJobQueue()
    scheduler = Scheduler(queue, [once(at(12, 1), report)], catch_up_seconds=0)
    assert await scheduler.tick(at(12, 0, 59)) == []
    assert await scheduler.tick(at(12, 1)) == ["schedule:test_schedule.report:2026-01-05T12:01:00+00:00"]
    assert await scheduler.tick(at(13)) == []


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no time zone"):
        once(datetime(2026, 1, 5, 12), report)  # noqa: DTZ001


async def test_a_job_is_told_when_its_tick_was_due() -> None:
    queue = InMemoryJobQueue()
    (job_id,) = await Scheduler(queue, [every(60, report)], catch_up_seconds=60).tick(at(12, 1, 30))
    job = await queue.get(job_id)
    assert job is not None
    assert JobContext(job).scheduled_at == at(12, 1)
    other = await queue.get(await report.options(on=queue).enqueue())
    assert other is not None
    assert JobContext(other).scheduled_at is None


async def test_jitter_delays_each_tick_by_its_own_amount_that_all_schedulers_agree_on() -> None:
    one, other = InMemoryJobQueue(clock=FakeClock(START)), InMemoryJobQueue(clock=FakeClock(START))
    for queue in (one, other):
        schedule = every(60, report, jitter_seconds=30.0, missed="run_all")
        await Scheduler(queue, [schedule], catch_up_seconds=3600).tick(START)
    delays = {job.id: job.available_at for job in await one.list()}
    assert delays == {job.id: job.available_at for job in await other.list()}
    starts = [schedule.starts(START + timedelta(minutes=number)) for number in range(1000)]
    late = [(start - START).total_seconds() % 60 for start in starts]
    assert 0 <= min(late) < 1
    assert 29 < max(late) <= 30
    assert await_seconds(delays) == max(0.0, (schedule.starts(START) - START).total_seconds())


def await_seconds(delays: dict[str, datetime]) -> float:
    return (delays[every(60, report).key(START)] - START).total_seconds()
