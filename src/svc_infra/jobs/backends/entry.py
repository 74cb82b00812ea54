"""A job as the queue in memory keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from svc_infra.jobs.backends.turns import Lane, rank_of
from svc_infra.jobs.job import Job, JobState, Limit, Unique, read_object, read_result


@dataclass(slots=True)
class Entry:
    """A job and the texts that are read anew each time it is shown, so that no handler changes what is kept."""

    job: Job
    payload: str
    context: str
    limit: Limit | None
    result: str | None = None

    def lane(self) -> Lane:
        """Where it waits."""
        return Lane(self.job.queue, self.job.tenant, self.job.limit_key or "")

    def rank(self) -> int:
        """Its place there."""
        return rank_of(self.job.available_at, self.job.priority)

    def limits(self) -> tuple[int | None, int | None, float]:
        """The numbers of its limit: concurrency, rate, period in seconds."""
        limit = self.limit
        return (None, None, 60.0) if limit is None else (limit.concurrency, limit.rate, limit.period_seconds)

    def holds(self, unique: Unique, now: datetime) -> bool:
        """Whether it holds its unique key against a job that is stored now."""
        window = unique.window_seconds
        fresh = window is None or now - self.job.created_at < timedelta(seconds=window)
        return fresh and self.job.state in unique.states

    def has(self, state: JobState | None, equal: Mapping[str, str]) -> bool:
        """Whether it is in this state and its fields have these values."""
        return state in (None, self.job.state) and all(
            getattr(self.job, name) == value for name, value in equal.items()
        )

    def seen(self) -> Job:
        """The job as it is shown."""
        return replace(
            self.job,
            payload=read_object(self.payload),
            context=read_object(self.context),
            result=read_result(self.result),
        )
