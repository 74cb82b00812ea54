"""A schedule as data: what YAML, the database and the command line hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs.schedules.schedule import DEFAULT_MAX_MISSED, Missed, Overlap, Policies, Schedule, at, cron, every
from svc_infra.jobs.schedules.times import Cron, Interval, Once
from svc_infra.jobs.task import Task

DEFINITION_LIMIT_BYTES = 16 * 1024
"""The longest definition: every scheduler reads all of them once a second."""


class Definition(BaseModel):
    """A schedule with its task's name instead of the task; its name is kept beside it.

    Attributes:
        task: The task's name.
        cron, every_seconds, at: The times; exactly one of them is given.
        tz: The IANA time zone of `cron`.
        payload: The task's arguments.
        missed, max_missed, overlap, jitter_seconds: See `Policies`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1)
    cron: str | None = None
    every_seconds: float | None = None
    at: AwareDatetime | None = None
    tz: str = "UTC"
    payload: dict[str, Any] = Field(default_factory=dict)
    missed: Missed = "run_once"
    max_missed: int = DEFAULT_MAX_MISSED
    overlap: Overlap = "allow"
    jitter_seconds: float = 0.0

    @classmethod
    def of(cls, schedule: Schedule) -> Definition:
        """The definition of a schedule.

        Raises:
            ConfigurationError: Its times are none of the library's.
            ValidationError: Its payload does not fit its task.
        """
        times: dict[str, Any]
        match schedule.times:
            case Interval(step):
                times = {"every_seconds": step.total_seconds()}
            case Cron(expression, zone):
                times = {"cron": expression, "tz": str(zone)}  # an IANA zone's key; "UTC" for UTC
            case Once(moment):
                times = {"at": moment}
            case other:
                raise ConfigurationError(f"{schedule.name}: {other!r} cannot be stored: use every, cron or at.")
        return cls(
            task=schedule.task.name,
            payload=schedule.task.arguments.encode(schedule.payload),
            missed=schedule.missed,
            max_missed=schedule.max_missed,
            overlap=schedule.overlap,
            jitter_seconds=schedule.jitter_seconds,
            **times,
        )

    def text(self) -> str:
        """What is stored: equal texts are equal definitions.

        Raises:
            ValidationError: It is longer than 16 KiB.
        """
        text = self.model_dump_json(exclude_defaults=True)
        if len(text.encode()) > DEFINITION_LIMIT_BYTES:
            raise ValidationError(f"A schedule is at most {DEFINITION_LIMIT_BYTES:,} bytes long, its payload included.")
        return text

    def when(self) -> str:
        """The times in words, such as "cron 0 7 * * * Europe/Berlin"."""
        if self.cron is not None:
            return f"cron {self.cron} {self.tz}"
        return f"at {self.at}" if self.every_seconds is None else f"every {self.every_seconds:g} s"

    def schedule(self, name: str, tasks: Mapping[str, Task[..., Any]]) -> Schedule:
        """The schedule of this definition.

        Args:
            name: The schedule's.
            tasks: By name, the task among them.

        Raises:
            ConfigurationError: The task is unknown, there is not exactly one kind of times, or a value cannot be used.
            ValidationError: The name cannot be used, or the payload does not fit the task.
        """
        if (task := tasks.get(self.task)) is None:
            raise ConfigurationError(f"There is no task {self.task}.")
        if [self.cron, self.every_seconds, self.at].count(None) != 2:
            raise ConfigurationError("A schedule has one of cron, every_seconds and at.")
        if self.cron is None and self.tz != "UTC":
            raise ConfigurationError("Only cron has a tz.")
        task.arguments.encode(self.payload)
        policies = Policies(
            missed=self.missed, max_missed=self.max_missed, overlap=self.overlap, jitter_seconds=self.jitter_seconds
        )
        if self.cron is not None:
            return cron(self.cron, task, self.payload, tz=self.tz, name=name, **policies)
        if self.every_seconds is not None:
            return every(self.every_seconds, task, self.payload, name=name, **policies)
        assert self.at is not None  # noqa: S101 - counted above
        return at(self.at, task, self.payload, name=name, **policies)
