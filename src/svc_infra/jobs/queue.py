"""The ports of the room, what a backend can do and what can be asked of it; and the part that all backends share.

A backend extends `CheckedQueue`, which checks every argument in one place, and adds `wait` and the `JobStore` methods.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from svc_infra.errors import StaleAttemptError, ValidationError
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DELAY_LIMIT_SECONDS,
    DURATION_LIMIT_SECONDS,
    UNREADABLE,
    Job,
    JobState,
    NewJob,
    backoff_delay,
    check_name,
    check_number,
    error_text,
    new_job,
    result_text,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

RESERVE_LIMIT_JOBS = 1000
"""How many jobs one `reserve` claims at most, whatever it is asked for."""
QUEUES_LIMIT = 100
"""How many queues one `reserve` can name."""
SWEEP_LIMIT_JOBS = 100
"""How many jobs whose lease ended, and how many whose delay did, one `reserve` looks at beside those that are ready."""

LEASE_ENDED = "The attempt's lease ended without an answer: its worker died or stalled."

_log = logging.getLogger(__name__)


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

    async def reserve(
        self, *, worker_id: str, queues: Sequence[str] = ("default",), limit: int = 1, lease_seconds: float = 15.0
    ) -> list[Job]:
        """Claim up to `limit` due jobs: highest priority first, then oldest. Each counts one attempt and gets a token.

        A job whose lease has ended is due again; with no attempt left it goes to the dead letter instead.
        """
        ...

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> set[str]:
        """Renew the leases.

        Returns:
            The ids of the jobs that are still held; the others belong to someone else now.
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


class CheckedQueue(ABC):
    """What the backends share: it checks every argument, and makes a refused compare-and-set a `StaleAttemptError`.

    Args:
        max_attempts: For jobs that are enqueued without their own.
        backoff_seconds: Likewise.
    """

    def __init__(
        self, *, max_attempts: int = DEFAULT_MAX_ATTEMPTS, backoff_seconds: float = DEFAULT_BACKOFF_SECONDS
    ) -> None:
        self._max_attempts = max_attempts
        self._backoff_seconds = backoff_seconds

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
        """See `JobQueue.enqueue`."""
        job = new_job(
            name,
            payload,
            queue=queue,
            delay_seconds=delay_seconds,
            priority=priority,
            max_attempts=self._max_attempts if max_attempts is None else max_attempts,
            backoff_seconds=self._backoff_seconds if backoff_seconds is None else backoff_seconds,
            timeout_seconds=timeout_seconds,
            unique_key=unique_key,
            job_id=job_id,
        )
        return await self._store(job, session)

    async def reserve(
        self, *, worker_id: str, queues: Sequence[str] = ("default",), limit: int = 1, lease_seconds: float = 15.0
    ) -> list[Job]:
        """See `JobQueue.reserve`. A job that was stored damaged goes to the dead letter instead."""
        names = [] if isinstance(queues, str) else list(dict.fromkeys(check_name("queue", name) for name in queues))
        if not 0 < len(names) <= QUEUES_LIMIT:
            raise ValidationError(f"A worker serves 1 to {QUEUES_LIMIT} queues: give a list of names.")
        limit = min(check_number("reserve limit", limit, 1, 2**31), RESERVE_LIMIT_JOBS)
        _check_lease(lease_seconds)
        jobs = await self._claim(check_name("worker id", worker_id), names, limit, lease_seconds)
        damaged = [job for job in jobs if UNREADABLE in job.payload or UNREADABLE in job.context]
        for job in damaged:
            _log.error("jobs.damaged", extra={"job_id": job.id, "job_name": job.name})
            await self.fail(job, error="The stored payload or context is no JSON object any more.", dead=True)
        return [job for job in jobs if job not in damaged] if damaged else jobs

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> set[str]:
        """See `JobQueue.heartbeat`."""
        _check_lease(lease_seconds)
        return await self._renew(jobs, lease_seconds) if jobs else set()

    async def ack(self, job: Job, *, result: Any = None, session: AsyncSession | None = None) -> None:
        """See `JobQueue.ack`."""
        if not await self._succeed(job, result_text(result), session):
            raise StaleAttemptError()

    async def fail(self, job: Job, *, error: str, delay_seconds: float | None = None, dead: bool = False) -> JobState:
        """See `JobQueue.fail`."""
        if delay_seconds is None:
            delay_seconds = backoff_delay(job.attempts, job.backoff_seconds)
        _check_delay(delay_seconds)
        state = await self._fail(job, error_text(error), delay_seconds, dead)
        if state is None:
            raise StaleAttemptError()
        return state

    async def release(self, job: Job, *, delay_seconds: float = 0.0) -> None:
        """See `JobQueue.release`."""
        _check_delay(delay_seconds)
        if not await self._release(job, delay_seconds):
            raise StaleAttemptError()

    async def progress(self, job: Job, *, done: int, total: int = 0) -> None:
        """See `JobQueue.progress`."""
        for what, count in (("progress", done), ("progress total", total)):
            check_number(what, count, 0, 2**53)
        if not await self._progress(job, done, total):
            raise StaleAttemptError()

    @abstractmethod
    async def _store(self, job: NewJob, session: AsyncSession | None) -> str:
        """Store it, unless its id or its unique key is kept; the id of the job that is kept."""

    @abstractmethod
    async def _claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """Put back what has become due or lost its lease, then claim."""

    @abstractmethod
    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> set[str]:
        """Move the ends of the leases; the ids that are still held."""

    @abstractmethod
    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        """Done; False when the token is not the job's."""

    @abstractmethod
    async def _fail(self, job: Job, error: str, delay_seconds: float, dead: bool) -> JobState | None:
        """Failed; the new state, None when the token is not the job's."""

    @abstractmethod
    async def _release(self, job: Job, delay_seconds: float) -> bool:
        """Handed back; False when the token is not the job's."""

    @abstractmethod
    async def _progress(self, job: Job, done: int, total: int) -> bool:
        """Reported; False when the token is not the job's."""


class Wakeup:
    """Wakes whoever waits in this process; a notice that comes while nobody waits is kept for the next who does."""

    def __init__(self) -> None:
        self._noticed = False
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all who wait."""
        self._noticed = not self._waiting
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for a notice, at most this long."""
        if self._noticed:
            self._noticed = False
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_seconds)
        finally:
            self._waiting.discard(waiter)


def _check_lease(lease_seconds: float) -> None:
    check_number("lease_seconds", lease_seconds, 0.001, DURATION_LIMIT_SECONDS)


def _check_delay(delay_seconds: float) -> None:
    check_number("delay_seconds", delay_seconds, 0.0, DELAY_LIMIT_SECONDS)
