"""What runs when: a task, its arguments, the times, and what becomes of the times that cannot be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, TypedDict, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from typing_extensions import Unpack

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.job import DELAY_LIMIT_SECONDS, check_name
from svc_infra.jobs.schedules.times import EPOCH, Cron, Interval, Once, Times
from svc_infra.jobs.task import Task

JITTER_LIMIT_SECONDS = 86_400.0
MAX_MISSED_LIMIT = 1000
DEFAULT_MAX_MISSED = 100


Missed: TypeAlias = Literal["skip", "run_once", "run_all"]
Overlap: TypeAlias = Literal["allow", "skip", "buffer_one", "cancel_previous"]


class Policies(TypedDict, total=False):
    """What every kind of schedule can be told.

    Attributes:
        missed: What becomes of the ticks that nobody stored in time, or that were due while the schedule was paused:
            "skip", nothing runs, where a tick less than a minute late is in time; "run_once", the latest one runs
            (the default); "run_all", the latest `max_missed` run.
        max_missed: 1 to 1,000; 100 by default.
        overlap: What becomes of a tick while the job of the one before waits or runs: "allow", both run (the
            default); "skip", it does not run; "buffer_one", one tick waits for the job to end and those after it do
            not run; "cancel_previous", the job is cancelled, and the latest tick runs as soon as it has ended.
        jitter_seconds: Each job starts up to this much later than its tick is due, each tick by an amount of its own
            that all schedulers agree on; 0.0 by default.
    """

    missed: Missed
    max_missed: int
    overlap: Overlap
    jitter_seconds: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task and when to run it; made by `every`, `cron` and `at`.

    Attributes:
        name: Unique in an app, and the same in every process and release: it is part of what makes a tick unique.
        payload: The task's arguments.
        missed, max_missed, overlap, jitter_seconds: See `Policies`.

    Raises:
        ConfigurationError: A policy is out of its limits.
        ValidationError: The name cannot be part of a job's id.
    """

    name: str
    task: Task[..., Any]
    times: Times
    payload: Mapping[str, Any] = field(default_factory=dict)
    missed: Missed = "run_once"
    max_missed: int = DEFAULT_MAX_MISSED
    overlap: Overlap = "allow"
    jitter_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_name("schedule key", self.key(EPOCH.replace(microsecond=1)))
        for policy, chosen, known in (("missed", self.missed, Missed), ("overlap", self.overlap, Overlap)):
            if chosen not in get_args(known):
                raise ConfigurationError(f"{self.name}: {policy} is {chosen!r}; use {', '.join(get_args(known))}.")
        if not 1 <= self.max_missed <= MAX_MISSED_LIMIT:
            raise ConfigurationError(f"{self.name}: max_missed is {self.max_missed}; use 1 to {MAX_MISSED_LIMIT}.")
        if not 0.0 <= self.jitter_seconds <= JITTER_LIMIT_SECONDS:
            raise ConfigurationError(
                f"{self.name}: jitter_seconds is {self.jitter_seconds}; use 0 to {JITTER_LIMIT_SECONDS:.0f}."
            )

    @property
    def kept(self) -> int:
        """How many of the ticks that are due at once may run."""
        return self.max_missed if self.missed == "run_all" else 1

    def key(self, due: datetime) -> str:
        """The id of one tick's job."""
        return f"schedule:{self.name}:{due.isoformat()}"

    def starts(self, due: datetime) -> datetime:
        """When one tick's job may start: when it is due, or later by its jitter."""
        share = int.from_bytes(blake2b(self.key(due).encode(), digest_size=8).digest()) / 2**64
        return due + timedelta(seconds=share * self.jitter_seconds)


def every(
    seconds: float,
    task: Task[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    **policies: Unpack[Policies],
) -> Schedule:
    """Run a task at every whole multiple of some seconds since 1970, in UTC: `every(3600, clean_up)` on the hour.

    Args:
        seconds: Between two ticks.
        task: What to run.
        payload: Its arguments.
        name: Tells apart several schedules of one task; the task's name when left out.
        policies: See `Policies`.

    Raises:
        ConfigurationError: The seconds are not above 0, or more than a year; or a policy is out of its limits.
    """
    if not 0.001 <= seconds <= DELAY_LIMIT_SECONDS:
        raise ConfigurationError(f"A schedule every {seconds} seconds: use 0.001 to {DELAY_LIMIT_SECONDS:.0f}.")
    return Schedule(name or task.name, task, Interval(timedelta(seconds=seconds)), payload or {}, **policies)


def cron(
    expression: str,
    task: Task[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    tz: str = "UTC",
    name: str | None = None,
    **policies: Unpack[Policies],
) -> Schedule:
    """Run a task at the times that a cron expression names: `cron("0 7 * * MON-FRI", greet, tz="Europe/Berlin")`.

    Args:
        expression: Minute, hour, day of month, month, day of week; with a sixth field in front, seconds too.
        task: What to run.
        payload: Its arguments.
        tz: The IANA time zone of the expression.
        name: Tells apart several schedules of one task; the task's name when left out.
        policies: See `Policies`.

    Raises:
        ConfigurationError: The expression or the time zone cannot be read, or a policy is out of its limits.
    """
    try:
        zone = UTC if tz == "UTC" else ZoneInfo(tz)
        CronSim(expression, EPOCH)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"{tz!r} is no time zone: use an IANA name such as Europe/Berlin.") from None
    except CronSimError as error:
        raise ConfigurationError(f"{expression!r} is no cron expression: {error}.") from None
    return Schedule(name or task.name, task, Cron(expression, zone), payload or {}, **policies)


def at(
    moment: datetime,
    task: Task[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    **policies: Unpack[Policies],
) -> Schedule:
    """Run a task once: `at(datetime(2030, 1, 1, tzinfo=UTC), celebrate)`.

    Args:
        moment: When, with its time zone.
        task: What to run.
        payload: Its arguments.
        name: Tells apart several schedules of one task; the task's name when left out.
        policies: See `Policies`.

    Raises:
        ConfigurationError: The moment has no time zone, or a policy is out of its limits.
    """
    if moment.tzinfo is None:
        raise ConfigurationError(f"A schedule at {moment} has no time zone: use datetime(..., tzinfo=UTC).")
    return Schedule(name or task.name, task, Once(moment.astimezone(UTC)), payload or {}, **policies)
