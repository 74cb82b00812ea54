"""Stores the jobs of the ticks that are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.schedules.schedule import Schedule
from svc_infra.obs.metrics import metrics
from svc_infra.types import Clock, SystemClock

CATCH_UP_SECONDS = 300.0
LONGEST_SLEEP_SECONDS = 1.0  # so that a step of the clock and a failed schedule are seen soon

_log = logging.getLogger(__name__)


class Scheduler:
    """Stores a job for each tick that is due.

    Any number of schedulers may run, in any number of processes: a tick's job has a unique key, so it is stored once.
    A scheduler that paused, or could not reach the queue, stores the latest tick that it missed; one that starts
    looks back `catch_up_seconds`.

    Args:
        queue: Where the jobs go. It must keep finished jobs for longer than `catch_up_seconds` and than clocks differ.
        schedules: What to run when; `add` adds more.
        clock: Where the time comes from.
        catch_up_seconds: How far before its start a tick may lie that nobody has stored.

    Raises:
        ConfigurationError: Two schedules have one name.
        ValidationError: A payload does not fit its task.
    """

    def __init__(
        self,
        queue: JobQueue,
        schedules: Iterable[Schedule] = (),
        *,
        clock: Clock | None = None,
        catch_up_seconds: float = CATCH_UP_SECONDS,
    ) -> None:
        self._queue = queue
        self._clock = clock if clock is not None else SystemClock()
        self._catch_up = timedelta(seconds=catch_up_seconds)
        self._schedules: dict[str, Schedule] = {}
        self._done_until: dict[str, datetime] = {}
        self._failing: set[str] = set()
        self._stopping = asyncio.Event()
        for schedule in schedules:
            self.add(schedule)

    def add(self, schedule: Schedule) -> None:
        """Run this schedule too; see the class for what it raises."""
        if self._schedules.setdefault(schedule.name, schedule) is not schedule:
            raise ConfigurationError(f"Two schedules are called {schedule.name}: give one of them `name=`.")
        schedule.task.arguments.encode(schedule.payload)

    async def tick(self, now: datetime | None = None) -> list[str]:
        """Store what is due; a schedule that fails is logged, tried again by the next tick, and stops no other.

        Args:
            now: The time; the clock's when left out.

        Returns:
            The ids of the jobs of the ticks that are due, whichever scheduler stored them.
        """
        now = self._clock.now() if now is None else now
        stored = []
        for schedule in list(self._schedules.values()):
            after = min(self._done_until.get(schedule.name, now - self._catch_up), now)
            try:
                due = schedule.times.latest(after, now)
                if due is not None:
                    stored.append(await self._store(schedule, due))
            except Exception:  # noqa: BLE001 - one schedule's failure is logged and counted, and stops no other
                metrics.increment("jobs.schedule_failures", schedule=schedule.name)
                if schedule.name not in self._failing:
                    self._failing.add(schedule.name)
                    _log.exception("jobs.schedule_failed", extra={"schedule": schedule.name})
            else:
                self._failing.discard(schedule.name)
                self._done_until[schedule.name] = now
        return stored

    async def run(self) -> None:
        """Tick whenever something is due, until `stop`."""
        while not self._stopping.is_set():
            await self.tick()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._sleep_seconds()):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Let `run` return; may be called again."""
        self._stopping.set()

    def _sleep_seconds(self) -> float:
        now = self._clock.now()
        moments = [found for one in self._schedules.values() if (found := one.times.following(now)) is not None]
        return min([LONGEST_SLEEP_SECONDS, *((moment - now).total_seconds() for moment in moments)])

    async def _store(self, schedule: Schedule, due: datetime) -> str:
        call = schedule.task.options(on=self._queue, unique_key=schedule.key(due))
        job_id = await call.enqueue(**schedule.payload)
        metrics.increment("jobs.scheduled", schedule=schedule.name)
        return job_id
