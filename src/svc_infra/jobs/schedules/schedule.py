"""What runs when: a task, its arguments and the times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.job import DELAY_LIMIT_SECONDS, check_name
from svc_infra.jobs.schedules.times import EPOCH, Cron, Interval, Times
from svc_infra.jobs.task import Task


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
        check_name("schedule key", self.key(EPOCH))

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
        CronSim(expression, EPOCH)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"{tz!r} is no time zone: use an IANA name such as Europe/Berlin.") from None
    except CronSimError as error:
        raise ConfigurationError(f"{expression!r} is no cron expression: {error}.") from None
    return Schedule(name or task.name, task, Cron(expression, zone), payload or {})
