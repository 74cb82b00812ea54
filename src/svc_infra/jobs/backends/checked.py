"""The part that all backends share: every argument is checked in one place."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from svc_infra.errors import StaleAttemptError, ValidationError
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DELAY_LIMIT_SECONDS,
    DURATION_LIMIT_SECONDS,
    UNREADABLE,
    Job,
    JobRequest,
    JobState,
    NewJob,
    backoff_delay,
    check_name,
    check_number,
    error_text,
    new_job,
    result_text,
)
from svc_infra.jobs.queue import ENQUEUE_LIMIT_JOBS, RESERVE_LIMIT_JOBS, Beat, Completion

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

QUEUES_LIMIT = 100
"""How many queues one `reserve` can name."""
SWEEP_LIMIT_JOBS = 100
"""How many jobs whose lease ended, and how many whose delay did, one `reserve` looks at beside those that are ready."""

LEASE_ENDED = "The attempt's lease ended without an answer: its worker died or stalled."

_log = logging.getLogger(__name__)


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
        request = JobRequest(
            name=name,
            payload=payload,
            queue=queue,
            delay_seconds=delay_seconds,
            priority=priority,
            max_attempts=max_attempts,
            backoff_seconds=backoff_seconds,
            timeout_seconds=timeout_seconds,
            unique_key=unique_key,
            job_id=job_id,
        )
        return await self._store(self._checked(request), session)

    async def enqueue_many(self, requests: Sequence[JobRequest], *, session: AsyncSession | None = None) -> list[str]:
        """See `JobQueue.enqueue_many`."""
        if len(requests) > ENQUEUE_LIMIT_JOBS:
            raise ValidationError(f"Store at most {ENQUEUE_LIMIT_JOBS} jobs at once.")
        return await self._store_many([self._checked(request) for request in requests], session) if requests else []

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

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> Beat:
        """See `JobQueue.heartbeat`."""
        _check_lease(lease_seconds)
        return await self._renew(jobs, lease_seconds) if jobs else Beat(frozenset())

    async def ack(self, job: Job, *, result: Any = None, session: AsyncSession | None = None) -> None:
        """See `JobQueue.ack`."""
        if not await self._succeed(job, result_text(result), session):
            raise StaleAttemptError()

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        """See `JobQueue.ack_many`."""
        refused = set()
        for job, result in completions:
            try:
                await self.ack(job, result=result)
            except (StaleAttemptError, ValidationError):
                refused.add(job.id)
        return refused

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

    def _checked(self, request: JobRequest) -> NewJob:
        return new_job(
            request.name,
            request.payload,
            queue=request.queue,
            delay_seconds=request.delay_seconds,
            priority=request.priority,
            max_attempts=self._max_attempts if request.max_attempts is None else request.max_attempts,
            backoff_seconds=self._backoff_seconds if request.backoff_seconds is None else request.backoff_seconds,
            timeout_seconds=request.timeout_seconds,
            unique_key=request.unique_key,
            job_id=request.job_id,
        )

    @abstractmethod
    async def _store(self, job: NewJob, session: AsyncSession | None) -> str:
        """Store it, unless its id or its unique key is kept; the id of the job that is kept."""

    async def _store_many(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> list[str]:
        """Store them all, or none."""
        return [await self._store(job, session) for job in jobs]

    @abstractmethod
    async def _claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """Put back what has become due or lost its lease, then claim."""

    @abstractmethod
    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        """Move the ends of the leases; which are still held, and which of them were cancelled."""

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


def _check_lease(lease_seconds: float) -> None:
    check_number("lease_seconds", lease_seconds, 0.001, DURATION_LIMIT_SECONDS)


def _check_delay(delay_seconds: float) -> None:
    check_number("delay_seconds", delay_seconds, 0.0, DELAY_LIMIT_SECONDS)
