"""The ports of the room: what a backend can do, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from svc_infra.jobs.job import Job, JobRequest, JobState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

RESERVE_LIMIT_JOBS = 1000
"""How many jobs one `reserve` claims at most, whatever it is asked for."""
ENQUEUE_LIMIT_JOBS = 10_000
"""How many jobs one `enqueue_many` stores at most."""


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
        priority: int = 0,
        max_attempts: int | None = None,
        backoff_seconds: float | None = None,
        timeout_seconds: float | None = None,
        unique_key: str | None = None,
        job_id: str | None = None,
        session: AsyncSession | None = None,
    ) -> str:
        """Store a job.

        Args:
            session: Store it in this unit of work: gone with its rollback, visible with its commit.
            unique_key: Give back the job that holds this key instead of storing a second one.
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
        """Claim up to `limit` due jobs: highest priority first, then oldest. Each counts one attempt and gets a token.

        A job whose lease has ended is due again; with no attempt left it goes to the dead letter instead.
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

    async def fail(self, job: Job, *, error: str, delay_seconds: float | None = None, dead: bool = False) -> JobState:
        """The attempt failed: try again after `delay_seconds` (by default exponential with full jitter), or give up.

        Returns:
            `READY`, or `DEAD` when `dead` is set or no attempt is left.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        ...

    async def release(self, job: Job, *, delay_seconds: float = 0.0) -> None:
        """Hand the job back unspent, as a worker does that is shutting down or does not know the task.

        Args:
            delay_seconds: Not to be given out again before; 0.0 keeps the job's place in the queue.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        ...

    async def progress(self, job: Job, *, done: int, total: int = 0) -> None:
        """Report how far the attempt is.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        ...

    async def wait(self, timeout_seconds: float) -> None:
        """Return when a job may have become due, at the latest after `timeout_seconds`."""
        ...


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many jobs are in each state, and how old the oldest due one is (0.0 when none waits)."""

    counts: Mapping[JobState, int]
    oldest_due_age_seconds: float


class JobStore(Protocol):
    """What can be asked of the jobs that a queue keeps; every backend is both a `JobQueue` and a `JobStore`."""

    async def get(self, job_id: str) -> Job | None:
        """The job, or None when it was never stored or has been purged."""
        ...

    async def list(self, *, state: JobState | None = None, queue: str | None = None, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first."""
        ...

    async def retry(self, job_id: str) -> None:
        """Put a dead or cancelled job back, due at once, with its attempts counted from zero.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It is in another state.
        """
        ...

    async def cancel(self, job_id: str) -> None:
        """Cancel a job that waits.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It is running or already finished.
        """
        ...

    async def purge(self, *, older_than_seconds: float, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that finished longer ago than this; the dead letter is kept. Returns how many."""
        ...

    async def stats(self) -> QueueStats:
        """How full the queue is."""
        ...
