"""Looking after schedules while they run: what can be asked, and what changes for every scheduler of a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
from svc_infra.jobs import InMemoryJobQueue, JobContext, Schedule, Scheduler, Task, at, cron, every, task
from svc_infra.jobs.schedules import InMemoryScheduleStore, Schedules, ScheduleStore, SqlScheduleStore
from svc_infra.jobs.schedules import schedules as room
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing import FakeClock
from tests.jobs.working import START


@task(name="work")
async def work(number: int = 0) -> None: ...


@task(name="other")
async def other() -> None: ...


HOURLY = every(3600, work, name="hourly")


class Place:
    """A store, and the schedulers of several processes on it."""

    def __init__(self, store: ScheduleStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.queue = InMemoryJobQueue(clock=clock)

    def scheduler(self, *declared: Schedule, tasks: Iterable[Task[..., Any]] = (work,)) -> Scheduler:
        return Scheduler(self.queue, declared, tasks=tasks, store=self.store, catch_up_seconds=0)

    def schedules(self, *declared: Schedule) -> Schedules:
        return self.scheduler(*declared).schedules

    async def tick(self, minute: float, *declared: Schedule) -> list[str]:
        self.clock.advance((START - self.clock.now()).total_seconds() + minute * 60)
        return [job_id.removeprefix("schedule:") for job_id in await self.scheduler(*declared).tick()]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    clock = FakeClock(START)
    if request.param == "memory":
        yield Place(InMemoryScheduleStore(clock=clock), clock)
    else:
        db = AsyncDatabase(request.getfixturevalue(f"migrated_{request.param}_url"))
        yield Place(SqlScheduleStore(db, clock=clock), clock)
        await db.dispose()


def hour(number: int) -> datetime:
    return START + timedelta(hours=number)


async def test_a_schedule_that_was_put_runs_on_every_scheduler_of_the_store(place: Place) -> None:
    await place.tick(0)
    await place.schedules().put(every(600, work, {"number": 7}, name="new"))
    assert await place.tick(10) == ["new:2026-01-05T12:10:00+00:00"]
    job = await place.queue.get("schedule:new:2026-01-05T12:10:00+00:00")
    assert job is not None
    assert job.payload == {"number": 7}
    (info,) = await place.schedules().list()
    assert (info.name, info.declared, info.edited, info.next_at) == (
        "new",
        False,
        False,
        START + timedelta(minutes=20),
    )


async def test_an_edit_holds_until_a_release_declares_something_else(place: Place) -> None:
    await place.tick(0, HOURLY)
    await place.schedules(HOURLY).put(cron("30 * * * *", work, name="hourly"))
    assert (await place.schedules(HOURLY).get("hourly")).edited
    assert await place.tick(61, HOURLY) == ["hourly:2026-01-05T12:30:00+00:00"]
    slower = every(7200, work, name="hourly")
    assert await place.tick(120, slower) == []  # it begins now
    assert not (await place.schedules(slower).get("hourly")).edited
    assert await place.tick(241, slower) == ["hourly:2026-01-05T16:00:00+00:00"]


async def test_what_the_old_times_still_owed_is_explained_when_they_are_edited(place: Place) -> None:
    await place.tick(0, HOURLY)
    await place.tick(60, HOURLY)
    place.clock.advance(3 * 3600 + 60)
    await place.schedules(HOURLY).put(every(600, work, name="hourly"))
    tick = (await place.schedules().ticks("hourly"))[0]
    assert (tick.due, tick.outcome, tick.missed, tick.missed_since) == (hour(4), "edited", 2, hour(2))
    assert await place.tick(241 + 9, HOURLY) == ["hourly:2026-01-05T16:10:00+00:00"]


async def test_a_schedule_that_was_put_before_it_was_declared_counts_as_edited(place: Place) -> None:
    await place.schedules().put(every(600, work, name="hourly"))
    assert await place.tick(10, HOURLY) == ["hourly:2026-01-05T12:10:00+00:00"]
    assert (await place.schedules(HOURLY).get("hourly")).edited


async def test_a_paused_schedule_stores_nothing_on_any_scheduler(place: Place) -> None:
    await place.tick(0, HOURLY)
    for _ in range(2):
        await place.schedules(HOURLY).pause("hourly")
    assert await place.tick(60, HOURLY) == []
    info = await place.schedules(HOURLY).get("hourly")
    assert (info.paused, info.next_at) == (True, None)
    assert await place.schedules(HOURLY).next_runs("hourly", 2) == [hour(2), hour(3)]
    for _ in range(2):
        await place.schedules(HOURLY).resume("hourly")
    assert await place.tick(61, HOURLY) == ["hourly:2026-01-05T13:00:00+00:00"]


async def test_a_deleted_schedule_is_gone_unless_it_is_declared(place: Place) -> None:
    await place.tick(0, HOURLY)
    await place.schedules(HOURLY).put(every(600, work, name="hourly"))
    await place.schedules(HOURLY).put(every(600, work, name="put"))
    for name in ("hourly", "put"):
        await place.schedules(HOURLY).delete(name)
    (info,) = await place.schedules(HOURLY).list()
    assert (info.name, info.edited, info.next_at) == ("hourly", False, hour(1))
    with pytest.raises(NotFoundError, match="Schedule put"):
        await place.schedules(HOURLY).delete("put")


async def test_a_schedule_that_is_deleted_and_made_again_repeats_no_tick(place: Place) -> None:
    for minute in (0, 60):
        await place.tick(minute, HOURLY)
    await place.schedules(HOURLY).delete("hourly")
    again = Scheduler(place.queue, [HOURLY], store=place.store, catch_up_seconds=7200)
    assert await again.tick() == []
    assert len(await place.queue.list()) == 1


async def test_the_next_runs_are_those_that_follow(place: Place) -> None:
    schedules = place.schedules(
        cron("0 7 * * MON-FRI", work, name="weekdays", tz="Europe/Berlin"), at(hour(1), work, name="once")
    )
    runs = await schedules.next_runs("weekdays")
    assert len(runs) == 10
    assert [run.isoformat()[:13] for run in runs[:5]] == [f"2026-01-{day:02}T06" for day in (6, 7, 8, 9, 12)]
    assert await schedules.next_runs("once") == [hour(1)]
    with pytest.raises(NotFoundError, match="Schedule none"):
        await schedules.next_runs("none")


async def test_run_now_stores_a_job_whatever_the_times_for_whoever_asks(place: Place) -> None:
    schedules = place.schedules(every(3600, work, name="hourly", overlap="skip"))
    await schedules.pause("hourly")
    token = enter(Context(request_id="r1", tenant_id="acme"))
    job_id = await schedules.run_now("hourly")
    leave(token)
    job = await place.queue.get(job_id)
    assert job is not None
    assert (job.name, job.context["tenant_id"], JobContext(job).scheduled_at) == ("work", "acme", START)
    await schedules.resume("hourly")
    assert await place.tick(60, every(3600, work, name="hourly", overlap="skip")) == []  # it has not ended


async def test_a_schedule_of_another_release_is_left_to_its_schedulers(place: Place) -> None:
    await place.tick(0, HOURLY, every(3600, other, name="theirs"))
    assert await place.tick(60, HOURLY) == ["hourly:2026-01-05T13:00:00+00:00"]
    (theirs,) = [info for info in await place.schedules(HOURLY).list() if info.name == "theirs"]
    assert (theirs.declared, theirs.next_at) == (False, None)
    assert await place.tick(61, HOURLY, every(3600, other, name="theirs")) == ["theirs:2026-01-05T13:00:00+00:00"]


async def test_a_task_that_is_not_known_here_is_reported_and_left_to_others(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.scheduler(tasks=(other,)).schedules.put(every(600, other, name="theirs"))
    mine = place.scheduler(tasks=(work,))
    place.clock.advance(600)
    assert await mine.tick() == await mine.tick() == []
    assert caplog.messages == ["jobs.schedule_failed"]
    assert [info.next_at for info in await mine.schedules.list()] == [None]
    assert len(await place.scheduler(tasks=(other,)).tick()) == 1


async def test_a_mapping_becomes_a_schedule_or_is_refused(place: Place) -> None:
    schedules = place.schedules()
    body = {"task": "work", "cron": "0 7 * * *", "tz": "Europe/Berlin", "payload": {"number": 1}, "overlap": "skip"}
    await schedules.put(schedules.read("morning", body))
    assert (await schedules.get("morning")).next_at == START + timedelta(hours=18)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"task": "none", "cron": "* * * * *"}, "no task none"),
        ({"task": "work"}, "one of cron"),
        ({"task": "work", "cron": "* * * * *", "every_seconds": 5}, "one of cron"),
        ({"task": "work", "every_seconds": 5, "tz": "Europe/Berlin"}, "Only cron has a tz"),
        ({"task": "work", "cron": "99 * * * *"}, "no cron expression"),
        ({"task": "work", "every_seconds": 5, "payload": {"number": "x"}}, "number"),
        ({"task": "work", "interval": "6h"}, "cannot be read"),
    ]
    for wrong, named in refused:
        with pytest.raises(ValidationError, match=named):
            schedules.read("morning", wrong)


async def test_what_cannot_be_put_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = place.schedules()
    with pytest.raises(ValidationError, match="never be due"):
        await schedules.put(at(START, work, name="past"))
    with pytest.raises(ValidationError, match="number"):
        await schedules.put(every(60, work, {"number": "x"}))
    with pytest.raises(ValidationError, match="bytes long"):
        await schedules.put(every(60, task(name="text")(long), {"text": "x" * 20_000}))
    with pytest.raises(ConfigurationError, match="Two tasks are called work"):
        await schedules.put(every(60, task(name="work")(long), {"text": ""}))
    monkeypatch.setattr(room, "SCHEDULES_LIMIT", 1)
    await schedules.put(every(60, work, name="first"))
    await schedules.put(every(90, work, name="first"))
    with pytest.raises(ConflictError, match="at most 1"):
        await schedules.put(every(60, work, name="second"))


async def long(text: str) -> None: ...


async def test_ticks_are_forgotten_by_age_and_beyond_a_number(place: Place) -> None:
    for minute in range(0, 60, 10):
        await place.tick(minute, every(600, work, name="a"), every(1200, work, name="b"))
    assert await place.store.purge(before=START, keep=3) == 2
    assert await place.store.purge(before=START, keep=3) == 0
    kept = [len(await place.store.ticks(name)) for name in ("a", "b")]
    assert kept == [3, 2]
    assert await place.store.purge(before=START + timedelta(minutes=45), limit=2) == 2
    assert await place.store.purge(before=START + timedelta(minutes=45), limit=2) == 2
    assert [tick.due.minute for tick in await place.store.ticks("a")] == [50]


async def test_a_scheduler_forgets_what_is_older_than_a_week_and_single_times_that_are_over(place: Place) -> None:
    scheduler = place.scheduler(HOURLY, at(hour(1), work, name="declared"))
    await scheduler.schedules.put(at(hour(1), work, name="put"))
    await scheduler.tick()
    place.clock.advance(3600)
    await scheduler.tick()
    assert [len(await place.store.ticks(name)) for name in ("hourly", "declared", "put")] == [1, 1, 1]
    place.clock.advance(7 * 86_400)
    await scheduler.tick()
    assert {info.name for info in await scheduler.schedules.list()} == {"hourly", "declared", "put"}
    place.clock.advance(301)
    await scheduler.tick()
    assert {info.name for info in await scheduler.schedules.list()} == {"hourly", "declared"}
    assert await place.store.ticks("put") == []


async def test_whoever_read_an_older_version_changes_nothing(place: Place) -> None:
    await place.tick(0, HOURLY)
    record = (await place.store.look()).records["hourly"]
    assert not await place.store.insert(replace(record, definition="{}"))
    assert await place.store.write(record, replace(record, paused=True)) == []
    assert await place.store.write(record, replace(record, paused=False)) is None
    assert not await place.store.delete(record)
    assert (await place.store.look()).records["hourly"].paused


async def test_a_definition_of_a_newer_release_stops_no_other_schedule(sqlite_db: AsyncDatabase) -> None:
    place = Place(SqlScheduleStore(sqlite_db, clock=(clock := FakeClock(START))), clock)
    await place.tick(0, HOURLY)
    await place.schedules(HOURLY).put(every(600, work, name="newer"))
    async with sqlite_db.session() as session:
        await session.execute(text("""UPDATE svc_schedules SET definition = '{"moon": 1}' WHERE name = 'newer'"""))
    assert await place.tick(60, HOURLY) == ["hourly:2026-01-05T13:00:00+00:00"]
    (newer,) = [info for info in await place.schedules(HOURLY).list() if info.name == "newer"]
    assert (newer.definition, newer.next_at) == (None, None)
    await place.schedules(HOURLY).put(every(600, work, name="newer"))  # repaired
    assert (await place.schedules(HOURLY).get("newer")).next_at is not None
