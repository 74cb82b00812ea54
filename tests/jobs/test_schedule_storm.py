"""The proof: five schedulers with random kills and clock steps, through both changes of the clocks in three zones."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.jobs import InMemoryJobQueue, Schedule, Scheduler, SqlJobQueue, cron, every, task
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.schedules import InMemoryScheduleStore, ScheduleStore, SqlScheduleStore, Tick
from svc_infra.jobs.schedules.store import Record, StoreJob
from svc_infra.testing import FakeClock

EDGES = {  # each year's changes of the clocks, in UTC
    "Europe/Berlin": [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)],
}
ZONES = int(os.environ.get("SCHEDULE_STORM_ZONES", "1"))
"""In how many of the zones the storm rages in databases too; in memory it does so in all."""
CASES = [pytest.param(zone, edge, id=f"{zone}-{edge:%b}") for zone, edges in EDGES.items() for edge in edges]
BEFORE, AFTER = timedelta(hours=14), timedelta(hours=6)
MINUTE = timedelta(minutes=1)
SCHEDULERS = 5
STEPS_OF_CLOCKS = [0.0, 0.0, 5.0, -5.0, 90.0, -90.0, 3600.0, -3600.0]
Queue = InMemoryJobQueue | SqlJobQueue


class Killed(BaseException):
    """The scheduler's process is gone."""


class Mortal:
    """A scheduler's way to its store, on which it may die: before a write, within it, or right after it."""

    def __init__(self, store: ScheduleStore, chance: random.Random, points: Sequence[str], seen: Counter[str]) -> None:
        self._store = store
        self._chance = chance
        self._points = points
        self._seen = seen
        self.look, self.insert, self.delete = store.look, store.insert, store.delete
        self.ticks, self.purge, self.is_under_way = store.ticks, store.purge, store.is_under_way

    async def write(
        self, before: Record, after: Record, ticks: Sequence[Tick] = (), store_job: StoreJob | None = None
    ) -> list[Tick] | None:
        dies = self._chance.choice(self._points) if self._chance.random() < 0.1 else ""
        if dies == "before":
            raise Killed

        async def store_and_die(tick: Tick, session: object) -> None:
            assert store_job is not None
            await store_job(tick, session)  # type: ignore[arg-type]
            if dies == "within":
                raise Killed

        written = await self._store.write(before, after, ticks, store_and_die)
        self._seen["again"] += 0 if written is None else len(ticks) - len(written)  # they have their jobs already
        if dies == "after":
            raise Killed
        return written


@task(name="storm")
async def storm() -> None: ...


def schedules(zone: str, minutes: int) -> list[Schedule]:
    return [
        every(minutes * 60, storm, name="all", missed="run_all", max_missed=1000),
        every(300, storm, name="skip", missed="skip"),
        cron("*/5 * * * *", storm, name="elapsed", tz=zone, missed="run_all", max_missed=20),
        cron("0,30 1,2,3 * * *", storm, name="fixed", tz=zone),
    ]


def expected(zone: str, every_minutes: int, after: datetime, until: datetime) -> dict[str, set[datetime]]:
    """Which ticks there are, found without any of the code under test: minute by minute, on the clock on the wall."""
    minutes, wall = [], {}
    moment = after + MINUTE
    while moment <= until:
        minutes.append(moment)
        wall[moment] = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        moment += MINUTE
    shown = after.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    days = {face.date() for face in wall.values()}
    faces = [datetime(day.year, day.month, day.day, h, m) for day in days for h in (1, 2, 3) for m in (0, 30)]  # noqa: DTZ001
    return {
        "all": {moment for moment in minutes if moment.minute % every_minutes == 0},
        "skip": {moment for moment in minutes if moment.minute % 5 == 0},
        "elapsed": {moment for moment in minutes if wall[moment].minute % 5 == 0},
        "fixed": {
            next(moment for moment in minutes if wall[moment] >= face)
            for face in faces
            if shown < face <= wall[minutes[-1]]
        },
    }


class World:
    """The true time, five schedulers that see it wrongly and die, and a worker that runs and forgets every job."""

    def __init__(
        self, queue: Queue, stores: AsyncDatabase | InMemoryScheduleStore, start: datetime, **kind: Any
    ) -> None:
        self.queue = queue
        self.kind = kind
        self.now = start
        self._pace_seconds = 2000 if isinstance(stores, AsyncDatabase) else 600  # a database decides about more at once
        self.ran: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self._chance = random.Random(f"{start}")
        self._stores = stores
        self._clocks = [FakeClock(start) for _ in range(SCHEDULERS)]
        self._wrong_seconds = [0.0, 0.0, 90.0, 3600.0, -3600.0]  # by which each clock is ahead of the true time
        self._schedulers = [self._started(clock) for clock in self._clocks]

    def _started(self, clock: FakeClock) -> Scheduler:
        if isinstance(self._stores, AsyncDatabase):
            store: ScheduleStore = SqlScheduleStore(self._stores, clock=clock)
            points = ["before", "within", "after"]
        else:
            store, points = self._stores, ["before", "after"]  # what dies within takes this store with it
        mortal = Mortal(store, self._chance, points, self.seen)
        return Scheduler(self.queue, schedules(**self.kind), store=mortal, catch_up_seconds=0)

    async def live(self, until: datetime) -> None:
        await self.settle()  # what is due before anybody has looked for the first time is no miss
        while self.now < until:
            outage = self._chance.random() < 0.02
            self.now += timedelta(
                seconds=self._chance.uniform(3600, 7200) if outage else self._chance.expovariate(1 / self._pace_seconds)
            )
            if self._chance.random() < 0.5:
                self._wrong_seconds[self._chance.randrange(SCHEDULERS)] = self._chance.choice(STEPS_OF_CLOCKS)
            await self._tick(self._chance.sample(range(SCHEDULERS), self._chance.randint(1, SCHEDULERS)))
            await self._work()

    async def settle(self) -> None:
        """With right clocks and nobody dying."""
        store = self._stores if isinstance(self._stores, InMemoryScheduleStore) else SqlScheduleStore(self._stores)
        for _ in range(3):  # to see that clocks went back, to decide, and to find nothing more
            await Scheduler(self.queue, schedules(**self.kind), store=store, catch_up_seconds=0).tick(self.now)
        await self._work()

    async def _tick(self, numbers: Iterable[int]) -> None:
        async def tick(number: int) -> None:
            clock, scheduler = self._clocks[number], self._schedulers[number]
            right = self.now + timedelta(seconds=self._wrong_seconds[number])
            clock.advance((right - clock.now()).total_seconds())
            try:
                await scheduler.tick(right if isinstance(self._stores, InMemoryScheduleStore) else None)
            except Killed:
                self.seen["killed"] += 1
                self._schedulers[number] = self._started(clock)

        await asyncio.gather(*map(tick, numbers))

    async def _work(self) -> None:
        while jobs := await self.queue.reserve(worker_id="w", limit=1000):
            assert not await self.queue.ack_many([Completion(job) for job in jobs])
            self.ran.update(job.id for job in jobs)
        await self.queue.purge(older_than_seconds=0, limit=1000)


async def proven(world: World, store: ScheduleStore, edge: datetime) -> int:
    start, until = world.now, edge + AFTER
    await world.live(until)
    await world.settle()
    assert world.seen["killed"] > 2
    assert [job_id for job_id, times in world.ran.items() if times > 1] == []
    assert world.seen["again"] > 2  # clocks went back, and ticks were looked at for the second time
    due = expected(world.kind["zone"], world.kind["minutes"], start, world.now)
    for schedule in schedules(**world.kind):
        ticks = await store.ticks(schedule.name, 100_000)
        ran = {moment for moment in due[schedule.name] if schedule.key(moment) in world.ran}
        assert [one for one in due[schedule.name] - ran if not any(explains(tick, one) for tick in ticks)] == []
        assert world.ran.keys() >= {tick.job_id for tick in ticks if tick.job_id is not None}
        assert not [tick for tick in ticks if tick.outcome == "waiting"]
        assert ran == due[schedule.name] or schedule.name != "all"  # they may all run, so they all did
    return sum(map(len, due.values()))


def explains(tick: Tick, due: datetime) -> bool:
    no_job = tick.outcome not in ("stored", "waiting")
    return (tick.due == due and no_job) or (tick.missed_since is not None and tick.missed_since <= due < tick.due)


@pytest.mark.parametrize(("zone", "edge"), CASES)
async def test_no_tick_is_doubled_and_every_miss_is_explained(zone: str, edge: datetime) -> None:
    store = InMemoryScheduleStore()
    world = World(InMemoryJobQueue(), store, edge - BEFORE, zone=zone, minutes=1)
    assert await proven(world, store, edge) > 10_000 / len(CASES)


@pytest.mark.parametrize(("zone", "edge"), CASES[: 2 * ZONES])
async def test_no_tick_is_doubled_and_every_miss_is_explained_in_a_database(
    zone: str, edge: datetime, db: AsyncDatabase
) -> None:
    world = World(SqlJobQueue(db), db, edge - BEFORE, zone=zone, minutes=5)
    assert await proven(world, SqlScheduleStore(db), edge) > 400
