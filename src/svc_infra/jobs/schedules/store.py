"""What is known of each schedule and of its ticks, and the port to where that is kept."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

SCHEDULES_LIMIT = 1000
"""How many schedules one app has at most: every scheduler reads them all once a second."""
TICKS_KEPT = 10_000
"""How many ticks of one schedule are kept at most, by those that are kept for good."""
TICKS_KEPT_SECONDS = 7 * 86_400.0


class Outcome(StrEnum):
    """What became of a tick; all but the first two are reasons why it has no job."""

    STORED = "stored"
    WAITING = "waiting"  # for the job of an earlier tick to end
    LATE = "late"  # nobody looked in time
    PAUSED = "paused"  # it was due while the schedule was paused
    OVERLAP = "overlap"  # the job of an earlier tick had not ended
    REPLACED = "replaced"  # by a later tick, while it waited
    EDITED = "edited"  # it belonged to times that the schedule no longer has


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One time at which a schedule was due.

    Attributes:
        job_id: Of its job, where it has one.
        missed: How many ticks right before it have no job and no entry of their own; see `MISSES_COUNTED`.
        missed_since: When the first of those was due.
        reason: Why those have no job.
    """

    due: datetime
    outcome: Outcome
    job_id: str | None = None
    missed: int = 0
    missed_since: datetime | None = None
    reason: Outcome | None = None
    decided_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One schedule as it is stored.

    Attributes:
        definition: As text; see `Definition`.
        declared: What the code or the YAML file said last; None for a schedule that only the store has.
        version: Changes with every write: whoever writes must have read the latest one.
        paused_at: Kept after `resume`, until the next tick: what was due since then was due in the pause.
        decided_until: The ticks up to here have been decided, by the clock as it goes now.
        explained_until: Likewise, by a clock that was ahead of it before: their misses have been recorded.
        waiting_due: The tick that waits for the job of an earlier one to end.
        job_id, job_at: The job stored last, and when.
    """

    name: str
    definition: str
    declared: str | None
    version: int = 1
    paused: bool = False
    paused_at: datetime | None = None
    decided_until: datetime
    explained_until: datetime
    waiting_due: datetime | None = None
    job_id: str | None = None
    job_at: datetime | None = None


class Look(NamedTuple):
    """What a store knows: the time by the clock that its users share, and every schedule by its name."""

    now: datetime
    records: Mapping[str, Record]


StoreJob: TypeAlias = "Callable[[Tick, AsyncSession | None], Awaitable[None]]"
"""Stores a tick's job, in this unit of work where there is one."""


class ScheduleStore(Protocol):
    """Keeps schedules and their ticks, and lets one of many schedulers decide about a tick."""

    async def look(self) -> Look:
        """The time, and all schedules."""
        ...

    async def insert(self, record: Record) -> bool:
        """Keep a new schedule; False when there is one of its name, which stays as it is."""
        ...

    async def write(
        self, before: Record, after: Record, ticks: Sequence[Tick] = (), store_job: StoreJob | None = None
    ) -> list[Tick] | None:
        """Change a schedule, record ticks and store their jobs: all of it or nothing.

        Args:
            before: As it was read.
            after: As it is to be; its version is the next one, whatever it says.
            ticks: New ones, or what became of those that had no job.
            store_job: For each tick that is `STORED`.

        Returns:
            The ticks that were recorded: not those that have a job already. None, and nothing has happened, when the
            schedule has been changed since it was read.
        """
        ...

    async def delete(self, record: Record) -> bool:
        """Forget a schedule, but not its ticks; False when it has been changed since it was read."""
        ...

    async def is_under_way(self, job_id: str) -> bool:
        """Whether a job that `write` has stored is on its way to a queue outside of the database."""
        ...

    async def ticks(self, name: str, limit: int = 50) -> builtins.list[Tick]:
        """A schedule's ticks, the latest first."""
        ...

    async def purge(self, *, before: datetime, keep: int = TICKS_KEPT, limit: int = 10_000) -> int:
        """Forget up to `limit` ticks: those decided before this, and of each schedule all but the latest `keep`."""
        ...
