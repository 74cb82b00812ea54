"""The ports of the room: what a backend can do, and what can be asked of it."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from svc_infra.jobs.job import Job, JobRequest, JobState, Limit, Unique

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

RESERVE_LIMIT_JOBS = 1000
"""How many jobs one `reserve` claims at most, whatever it is asked for."""
QUEUES_LIMIT = 100
"""How many queues one `reserve` can name."""
ENQUEUE_LIMIT_JOBS = 10_000
"""How many jobs one `enqueue_many` stores at most."""
STORE_LIMIT_JOBS = 10_000
"""How many jobs one `purge` or `retry_many` changes at most."""
LIST_LIMIT_JOBS = 1000
"""How many jobs one `list` shows at most."""


class Completion(NamedTuple):
    """An attempt that succeeded, and what its task returned."""

    job: Job
    result: Any = None


class Beat(NamedTuple):
    """What a heartbeat learns, as ids of jobs: those that are still held, and those among them that are to end."""

    held: frozenset[str]
    cancelled: frozenset[str] = frozenset()


class JobQueue(Protocol):
    """Hands jobs to workers at least once; one attempt at a time holds a job, proven by its token.

    `ack`, `fail`, `release` and `progress` take the job as `reserve` gave it and refuse an attempt whose token is no
    longer the job's (`StaleAttemptError`): a worker that was given up for dead cannot finish another's attempt.
    """

    async def enqueue(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        queue: str = "default",
        delay_seconds: float = 0.0,
        at: datetime | None = None,
        priority: int = 0,
        max_attempts: int | None = None,
        backoff_seconds: float | None = None,
        timeout_seconds: float | None = None,
        unique_key: str | None = None,
        unique: Unique | None = None,
        limit: Limit | None = None,
        job_id: str | None = None,
        session: AsyncSession | None = None,
    ) -> str:
        """Store a job.

        Args:
            at: When it is to start, instead of a delay; at once when that is past.
            session: Store it in this unit of work: gone with its rollback, visible with its commit.
            unique_key: Give back the job that holds this key instead of storing a second one: `Unique(unique_key)`.
            unique: The same with a window, with states, or with another answer.
            limit: Shared with the other jobs of its key.
            job_id: Chosen by the caller; storing the same id again changes nothing.
            max_attempts, backoff_seconds: The queue's defaults when left out.

        Returns:
            The job's id.

        Raises:
            ValidationError: The payload is no JSON object or is larger than 1 MiB, a name is empty, longer than 200
                characters or has spaces in it, or a number is out of its limits.
            ConfigurationError: This queue cannot store a job in that unit of work; the message names the mend.
        """
        ...

    async def enqueue_many(self, requests: Sequence[JobRequest], *, session: AsyncSession | None = None) -> list[str]:
        """Store many jobs at once: all of them or none.

        Args:
            requests: At most 10,000.
            session: As for `enqueue`.

        Returns:
            Their ids, in the order of the requests.

        Raises:
            ValidationError, ConfigurationError: As `enqueue`; nothing is stored.
        """
        ...

    async def reserve(
        self, *, worker_id: str, queues: Sequence[str] = ("default",), limit: int = 1, lease_seconds: float = 15.0
    ) -> list[Job]:
        """Claim up to `limit` due jobs. Each counts one attempt and gets a token.

        Tenants that wait take turns, by their weights; of one tenant comes first what has waited longest, where each
        point of priority counts as `AGEING_SECONDS`. Jobs of paused queues and of limits that are full stay.

        A job whose lease has ended is due again, and keeps its place. It has crashed: after `max_crashes` of those it
        goes to the dead letter instead, as it does when it was cancelled to `CANCELLED`. A job of a newer format
        version is left to newer workers.
        """
        ...

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> Beat:
        """Renew the leases.

        Returns:
            Which jobs are still held, the others belong to someone else now; and which of them were cancelled.
        """
        ...

    async def ack(self, job: Job, *, result: Any = None, session: AsyncSession | None = None) -> None:
        """The attempt succeeded. With `session`, done commits together with the handler's effects (SQL queue only).

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
            ValidationError: The result is no JSON or is larger than 1 MiB.
            ConfigurationError: This queue does not live in the session's database.
        """
        ...

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        """Many attempts succeeded: as `ack` for each, in as few round trips as the backend needs.

        Returns:
            The ids of the jobs whose attempts no longer hold them, and of those whose result is refused: nothing was
            written of either. The others are done, durably.
        """
        ...

    async def fail(
        self,
        job: Job,
        *,
        error: str,
        delay_seconds: float | None = None,
        dead: bool = False,
        cancelled: bool = False,
        crashed: bool = False,
        fingerprint: str = "",
    ) -> JobState:
        """The attempt failed: try again after `delay_seconds` (by default exponential with full jitter), or give up.

        Args:
            dead: Not again.
            cancelled: Neither again nor to the dead letter.
            crashed: It took its process along: counts as a crash, as if its lease had ended, and not as an error.
            fingerprint: The same for errors of one kind and place, up to 64 characters.

        Returns:
            `CANCELLED` when `cancelled` is set or somebody has cancelled the job, else `DEAD` when `dead` is set or no
            attempt is left, or it has crashed too often, else `READY`.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        ...

    async def release(self, job: Job, *, delay_seconds: float = 0.0) -> None:
        """Hand the job back unspent, as a worker does that is shutting down or does not know the task.

        A job that somebody has cancelled meanwhile is `CANCELLED`.

        Args:
            delay_seconds: Not to be given out again before; 0.0 keeps the job's place in the queue.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        ...

    async def progress(self, job: Job, *, done: int, total: int = 0, session: AsyncSession | None = None) -> None:
        """Report how far the attempt is.

        Args:
            session: Report it with this unit of work (SQL queue only).

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
            ConfigurationError: This queue does not live in the session's database.
        """
        ...

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """The same queue with connections of its own, for heartbeats from another thread's event loop.

        Returns:
            None when there is no other way to it than from the event loop that uses this object.
        """
        ...

    async def wait(self, timeout_seconds: float) -> None:
        """Return when a job may have become due, at the latest after `timeout_seconds`."""
        ...


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How full the queues are, together.

    Attributes:
        counts: How many jobs are kept in each state.
        oldest_due_age_seconds: 0.0 when none waits.
        forgotten: How many finished ones are kept no longer, where the queue counts those: in Redis, which keeps few.
    """

    counts: Mapping[JobState, int]
    oldest_due_age_seconds: float
    forgotten: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """One named queue: what waits and runs in it, and how it is configured.

    Attributes:
        ready: Jobs that wait, due or not.
        running: Jobs that workers hold.
        oldest_due_age_seconds: 0.0 when none is due.
        concurrency, rate, period_seconds, weights: As given to `JobStore.configure_queue`.
    """

    name: str
    ready: int = 0
    running: int = 0
    oldest_due_age_seconds: float = 0.0
    paused: bool = False
    concurrency: int | None = None
    rate: int | None = None
    period_seconds: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_limited(self) -> bool:
        """Whether it has a concurrency or a rate."""
        return self.concurrency is not None or self.rate is not None


class JobStore(Protocol):
    """What can be asked of the jobs that a queue keeps; every backend is both a `JobQueue` and a `JobStore`."""

    async def get(self, job_id: str) -> Job | None:
        """The job, or None when it was never stored or has been purged."""
        ...

    async def list(
        self,
        *,
        state: JobState | None = None,
        queue: str | None = None,
        name: str | None = None,
        tenant: str | None = None,
        fingerprint: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """The newest jobs, newest first.

        Args:
            before: The id of a job: only those that are older than it; none when there is no such job any more.
            limit: At most 1,000.
        """
        ...

    async def retry(self, job_id: str) -> None:
        """Put a dead or cancelled job back, due at once, with its attempts counted from zero.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It is in another state.
        """
        ...

    async def retry_many(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        fingerprint: str | None = None,
        limit: int = 1000,
        per_second: float | None = None,
    ) -> int:
        """Put dead jobs back as `retry` does, those that have been dead longest first.

        Args:
            limit: At most 10,000.
            per_second: So many become due each second; None: all at once.

        Returns:
            How many.
        """
        ...

    async def edit(self, job_id: str, payload: Mapping[str, Any]) -> None:
        """Give a dead or waiting job another payload.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It is in another state.
            ValidationError: As `JobQueue.enqueue`.
        """
        ...

    async def cancel(self, job_id: str) -> None:
        """Cancel a job: at once while it waits; while it runs, its worker learns of it with its next heartbeat.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It has finished.
        """
        ...

    async def purge(self, *, older_than_seconds: float, limit: int = 1000, dead: bool = False) -> int:
        """Delete up to `limit` jobs that finished longer ago than this, those first that finished first.

        Args:
            limit: At most 10,000.
            dead: Delete from the dead letter, which is kept otherwise, instead of succeeded and cancelled jobs.

        Returns:
            How many.
        """
        ...

    async def stats(self) -> QueueStats:
        """How full the queues are, together."""
        ...

    async def queues(self) -> builtins.list[QueueInfo]:
        """Every queue in which a job waits or runs, and every one that is paused or configured, by name."""
        ...

    async def pause(self, queue: str) -> None:
        """Give out no more jobs of this queue; those that run go on."""
        ...

    async def resume(self, queue: str) -> None:
        """Give out jobs of this queue again."""
        ...

    async def configure_queue(
        self,
        queue: str,
        *,
        concurrency: int | None = None,
        rate: int | None = None,
        period_seconds: float = 60.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Limit a queue over all workers; what is left out is not limited.

        Args:
            concurrency, rate, period_seconds: As `Limit`.
            weights: How many jobs a tenant gets in its turn, compared with the others' 1.0: from 0.01 to 100.

        Raises:
            ValidationError: A number is out of its limits.
        """
        ...

    async def wait_for(self, job_id: str, timeout_seconds: float) -> Job:
        """The job once it has succeeded, died or been cancelled.

        Raises:
            NotFoundError: There is no such job.
            DeadlineExceededError: It takes longer than this.
        """
        ...
