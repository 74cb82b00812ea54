"""Jobs that are stored when their time comes, once for each tick however many schedulers run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.job import DELAY_LIMIT_SECONDS, check_name
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.task import Task
from svc_infra.obs.metrics import metrics
from svc_infra.types import Clock, SystemClock

CATCH_UP_SECONDS = 300.0
LONGEST_SLEEP_SECONDS = 1.0  # so that a step of the clock and a failed schedule are seen soon

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOWS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))

_log = logging.getLogger(__name__)


class Times(Protocol):
    """Points in time, the same ones whoever asks and whenever."""

    def following(self, moment: datetime) -> datetime | None:
        """The first one after a moment; None when there is none."""
        ...

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last one after `after` and not after `until`; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """The whole multiples of a step since 1970."""

    step: timedelta

    def following(self, moment: datetime) -> datetime:
        """See `Times.following`."""
        return _EPOCH + ((moment - _EPOCH) // self.step + 1) * self.step

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """See `Times.latest`."""
        last = _EPOCH + (until - _EPOCH) // self.step * self.step
        return last if last > after else None


@dataclass(frozen=True, slots=True)
class Cron:
    """The times that a cron expression names, by the clocks of a time zone.

    Where the clocks skip an hour, a time in it happens right after; where they repeat one, it happens once (Debian's
    cron does the same); expressions with `*` in the hour or minute follow elapsed time.
    """

    expression: str
    zone: tzinfo

    def following(self, moment: datetime) -> datetime | None:
        """See `Times.following`."""
        return next(self._after(moment), None)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """See `Times.latest`. Looks back in growing steps, so that a long pause costs no walk through all of it."""
        for window in (*_WINDOWS, until - after):
            since = max(after, until - window)
            last = None
            for moment in self._after(since):
                if moment > until:
                    break
                last = moment
            if last is not None or since == after:
                return last
        return None

    def _after(self, moment: datetime) -> Iterator[datetime]:
        for local in CronSim(self.expression, moment.astimezone(self.zone)):
            found = local.astimezone(UTC)
            if found > moment:  # inside a repeated hour the walk begins with its first pass
                yield found


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task and when to run it.

    Attributes:
        name: Unique in an app, and the same in every process and release: it is part of what makes a tick unique.
        payload: The task's arguments.
    """

    name: str
    task: Task[..., Any]
    times: Times
    payload: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("schedule key", self.key(_EPOCH))

    def key(self, due: datetime) -> str:
        """What one tick's job is unique by."""
        return f"schedule:{self.name}:{due.isoformat()}"


def every(
    seconds: float, task: Task[..., Any], payload: Mapping[str, Any] | None = None, *, name: str | None = None
) -> Schedule:
    """Run a task at every whole multiple of some seconds since 1970, in UTC: `every(3600, clean_up)` on the hour.

    Args:
        seconds: Between two ticks.
        task: What to run.
        payload: Its arguments.
        name: Tells apart several schedules of one task; the task's name when left out.

    Raises:
        ConfigurationError: The seconds are not above 0, or more than a year.
    """
    if not 0.001 <= seconds <= DELAY_LIMIT_SECONDS:
        raise ConfigurationError(f"A schedule every {seconds} seconds: use 0.001 to {DELAY_LIMIT_SECONDS:.0f}.")
    return Schedule(name or task.name, task, Interval(timedelta(seconds=seconds)), payload or {})


def cron(
    expression: str,
    task: Task[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    tz: str = "UTC",
    name: str | None = None,
) -> Schedule:
    """Run a task at the times that a cron expression names: `cron("0 7 * * MON-FRI", greet, tz="Europe/Berlin")`.

    Args:
        expression: Minute, hour, day of month, month, day of week; with a sixth field in front, seconds too.
        task: What to run.
        payload: Its arguments.
        tz: The IANA time zone of the expression.
        name: Tells apart several schedules of one task; the task's name when left out.

    Raises:
        ConfigurationError: The expression or the time zone cannot be read.
    """
    try:
        zone = UTC if tz == "UTC" else ZoneInfo(tz)
        CronSim(expression, _EPOCH)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"{tz!r} is no time zone: use an IANA name such as Europe/Berlin.") from None
    except CronSimError as error:
        raise ConfigurationError(f"{expression!r} is no cron expression: {error}.") from None
    return Schedule(name or task.name, task, Cron(expression, zone), payload or {})


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
