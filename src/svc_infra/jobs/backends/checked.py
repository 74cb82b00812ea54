"""The part that all backends share: every argument is checked in one place."""

from __future__ import annotations

import asyncio
import builtins
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from svc_infra.errors import DeadlineExceededError, NotFoundError, StaleAttemptError, ValidationError
from svc_infra.jobs.job import (
    ATTEMPTS_LIMIT,
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    DELAY_LIMIT_SECONDS,
    DURATION_LIMIT_SECONDS,
    FORMAT_VERSION,
    UNREADABLE,
    Job,
    JobRequest,
    JobState,
    Limit,
    NewJob,
    Unique,
    backoff_delay,
    check_limits,
    check_name,
    check_number,
    error_text,
    new_jobs,
    payload_text,
    result_text,
)
from svc_infra.jobs.queue import (
    ENQUEUE_LIMIT_JOBS,
    LIST_LIMIT_JOBS,
    QUEUES_LIMIT,
    RESERVE_LIMIT_JOBS,
    STORE_LIMIT_JOBS,
    Beat,
    Completion,
    JobQueue,
    QueueInfo,
)
from svc_infra.obs import metrics

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

SWEEP_LIMIT_JOBS = 100
"""How many jobs whose lease ended, and how many whose delay did, one `reserve` looks at beside those that are ready."""

LEASE_ENDED = "The attempt's lease ended without an answer: its worker died or stalled."
"""The last error of a job that has crashed; `lease_ended` adds the facts."""
NEWER_FORMAT_DELAY_SECONDS = 30.0
"""How long a job of a newer format version is left to newer workers."""
FINGERPRINT_LIMIT_CHARS = 64
WEIGHTS_LIMIT_TENANTS = 1000
LONGEST_LOOK_SECONDS = 0.5
"""The longest time between two looks of `wait_for`."""

_log = logging.getLogger(__name__)


class CheckedQueue(ABC):
    """What the backends share: it checks every argument, and makes a refused compare-and-set a `StaleAttemptError`.

    Args:
        max_attempts: For jobs that are enqueued without their own.
        backoff_seconds: Likewise.
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(
        self,
        *,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
    ) -> None:
        self._max_attempts = max_attempts
        self._backoff_seconds = backoff_seconds
        self._max_crashes = check_number("max_crashes", max_crashes, 1, ATTEMPTS_LIMIT)

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
        """See `JobQueue.enqueue`."""
        request = JobRequest(
            name=name,
            payload=payload,
            queue=queue,
            delay_seconds=delay_seconds,
            at=at,
            priority=priority,
            max_attempts=max_attempts,
            backoff_seconds=backoff_seconds,
            timeout_seconds=timeout_seconds,
            unique_key=unique_key,
            unique=unique,
            limit=limit,
            job_id=job_id,
        )
        (job_id,) = await self._store(self._checked([request]), session)
        return job_id

    async def enqueue_many(self, requests: Sequence[JobRequest], *, session: AsyncSession | None = None) -> list[str]:
        """See `JobQueue.enqueue_many`."""
        if len(requests) > ENQUEUE_LIMIT_JOBS:
            raise ValidationError(f"Store at most {ENQUEUE_LIMIT_JOBS} jobs at once.")
        return await self._store(self._checked(requests), session) if requests else []

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
        unfit = {job.id for job in jobs if job.version > FORMAT_VERSION or _is_damaged(job)}
        for job in jobs:
            if job.version > FORMAT_VERSION:
                metrics.increment("jobs.newer_format")
                _log.error("jobs.newer_format", extra={"job_id": job.id, "job_name": job.name, "format": job.version})
                await self.release(job, delay_seconds=NEWER_FORMAT_DELAY_SECONDS)
            elif job.id in unfit:
                _log.error("jobs.damaged", extra={"job_id": job.id, "job_name": job.name})
                await self.fail(job, error="The stored payload or context is no JSON object any more.", dead=True)
        return [job for job in jobs if job.id not in unfit] if unfit else jobs

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> Beat:
        """See `JobQueue.heartbeat`."""
        _check_lease(lease_seconds)
        return await self._renew(jobs, lease_seconds) if jobs else Beat(frozenset())

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """See `JobQueue.heart`."""
        return None

    async def ack(self, job: Job, *, result: Any = None, session: AsyncSession | None = None) -> None:
        """See `JobQueue.ack`."""
        _check_held("ack", await self._succeed(job, result_text(result), session))

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        """See `JobQueue.ack_many`."""
        results: dict[str, tuple[Job, str | None]] = {}
        refused = set()
        for job, result in completions:
            try:
                results[job.id] = (job, result_text(result))
            except ValidationError as error:
                refused.add(job.id)
                _log.warning("jobs.result_refused", exc_info=error, extra={"job_id": job.id, "job_name": job.name})
        if results:
            stale = results.keys() - await self._succeed_many([results[job_id] for job_id in sorted(results)])
            if stale:
                metrics.increment("jobs.stale_refused", len(stale), step="ack")
            refused |= stale
        return refused

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
        """See `JobQueue.fail`."""
        if delay_seconds is None:
            delay_seconds = backoff_delay(job.attempts - job.crashes, job.backoff_seconds)
        _check_delay(delay_seconds)
        dead = dead or (crashed and job.crashes + 1 >= self._max_crashes)
        end = JobState.CANCELLED if cancelled else JobState.DEAD if dead else None
        mark = error_text(fingerprint)[:FINGERPRINT_LIMIT_CHARS]
        state = await self._fail(job, error_text(error), mark, delay_seconds, end, crashed)
        _check_held("fail", state is not None)
        return state or JobState.READY

    async def release(self, job: Job, *, delay_seconds: float = 0.0) -> None:
        """See `JobQueue.release`."""
        _check_delay(delay_seconds)
        _check_held("release", await self._release(job, delay_seconds))

    async def progress(self, job: Job, *, done: int, total: int = 0, session: AsyncSession | None = None) -> None:
        """See `JobQueue.progress`."""
        for what, count in (("progress", done), ("progress total", total)):
            check_number(what, count, 0, 2**53)
        _check_held("progress", await self._progress(job, done, total, session))

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
    ) -> builtins.list[Job]:
        """See `JobStore.list`."""
        equal = {"queue": queue, "name": name, "tenant": tenant, "fingerprint": fingerprint}
        check_number("list limit", limit, 1, LIST_LIMIT_JOBS)
        return await self._list(state, {key: value for key, value in equal.items() if value is not None}, before, limit)

    async def retry_many(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        fingerprint: str | None = None,
        limit: int = 1000,
        per_second: float | None = None,
    ) -> int:
        """See `JobStore.retry_many`."""
        check_number("retry_many limit", limit, 1, STORE_LIMIT_JOBS)
        if per_second is not None:
            check_number("retry_many per_second", per_second, 0.001, 1e6)
        equal = {"queue": queue, "name": name, "fingerprint": fingerprint}
        chosen = {key: value for key, value in equal.items() if value is not None}
        return await self._retry_many(chosen, limit, 1 / per_second if per_second else 0.0)

    async def edit(self, job_id: str, payload: Mapping[str, Any]) -> None:
        """See `JobStore.edit`."""
        await self._edit(job_id, payload_text(payload))

    async def purge(self, *, older_than_seconds: float, limit: int = 1000, dead: bool = False) -> int:
        """See `JobStore.purge`."""
        check_number("purge older_than_seconds", older_than_seconds, 0.0, 100 * DELAY_LIMIT_SECONDS)
        check_number("purge limit", limit, 1, STORE_LIMIT_JOBS)
        return await self._purge(older_than_seconds, limit, dead)

    async def pause(self, queue: str) -> None:
        """See `JobStore.pause`."""
        await self._pause(check_name("queue", queue), True)

    async def resume(self, queue: str) -> None:
        """See `JobStore.resume`."""
        await self._pause(check_name("queue", queue), False)

    async def configure_queue(
        self,
        queue: str,
        *,
        concurrency: int | None = None,
        rate: int | None = None,
        period_seconds: float = 60.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """See `JobStore.configure_queue`."""
        check_limits("queue", concurrency, rate, period_seconds)
        weights = dict(weights or {})
        if len(weights) > WEIGHTS_LIMIT_TENANTS:
            raise ValidationError(f"A queue has weights for at most {WEIGHTS_LIMIT_TENANTS} tenants.")
        for weight in weights.values():
            check_number("tenant's weight", weight, 0.01, 100.0)
        await self._configure(
            QueueInfo(
                name=check_name("queue", queue),
                concurrency=concurrency,
                rate=rate,
                period_seconds=period_seconds,
                weights=weights,
            )
        )

    async def wait_for(self, job_id: str, timeout_seconds: float) -> Job:
        """See `JobStore.wait_for`. It looks again and again, half a second apart at most."""
        pause_seconds = 0.01
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    if (job := await self.get(job_id)) is None:
                        raise NotFoundError("Job", job_id)
                    if job.finished_at is not None:
                        return job
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, LONGEST_LOOK_SECONDS)
        except TimeoutError as error:
            raise DeadlineExceededError(f"The job has not ended within {timeout_seconds:g} s.") from error

    def _checked(self, requests: Sequence[JobRequest]) -> builtins.list[NewJob]:
        return new_jobs(requests, max_attempts=self._max_attempts, backoff_seconds=self._backoff_seconds)

    @abstractmethod
    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""

    @abstractmethod
    async def _store(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> builtins.list[str]:
        """Store them all or none, but for those whose id or unique key is kept; the ids of the jobs that are kept."""

    @abstractmethod
    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        """Put back what has become due or lost its lease, then claim."""

    @abstractmethod
    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        """Move the ends of the leases; which are still held, and which of them were cancelled."""

    @abstractmethod
    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        """Done; False when the token is not the job's."""

    @abstractmethod
    async def _succeed_many(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        """Done, each on its own and in the order of their ids; the ids of those whose token was the job's."""

    @abstractmethod
    async def _fail(
        self, job: Job, error: str, fingerprint: str, delay_seconds: float, end: JobState | None, crashed: bool
    ) -> JobState | None:
        """Failed or crashed, and ended where `end` says so; the new state, None when the token is not the job's."""

    @abstractmethod
    async def _release(self, job: Job, delay_seconds: float) -> bool:
        """Handed back; False when the token is not the job's."""

    @abstractmethod
    async def _progress(self, job: Job, done: int, total: int, session: AsyncSession | None) -> bool:
        """Reported; False when the token is not the job's."""

    @abstractmethod
    async def _list(
        self, state: JobState | None, equal: Mapping[str, str], before: str | None, limit: int
    ) -> builtins.list[Job]:
        """The newest jobs whose fields have these values, older than the job `before`."""

    @abstractmethod
    async def _retry_many(self, equal: Mapping[str, str], limit: int, spacing_seconds: float) -> int:
        """Put dead jobs back whose fields have these values, due this far apart."""

    @abstractmethod
    async def _edit(self, job_id: str, payload: str) -> None:
        """Change the payload of a dead or waiting job."""

    @abstractmethod
    async def _purge(self, older_than_seconds: float, limit: int, dead: bool) -> int:
        """Delete what finished longer ago."""

    @abstractmethod
    async def _pause(self, queue: str, paused: bool) -> None:
        """Pause or resume a queue; its limits and weights stay."""

    @abstractmethod
    async def _configure(self, queue: QueueInfo) -> None:
        """Keep a queue's limits and weights; whether it is paused stays."""


def lease_ended(worker_id: object, started_at: object, lease_expires_at: object) -> str:
    """The last error of a job that has crashed."""
    return f"{LEASE_ENDED} Held by {worker_id}, started at {started_at}, lease until {lease_expires_at}."


def _is_damaged(job: Job) -> bool:
    return UNREADABLE in job.payload or UNREADABLE in job.context


def _check_held(step: str, held: bool) -> None:
    if not held:
        metrics.increment("jobs.stale_refused", step=step)
        raise StaleAttemptError()


def _check_lease(lease_seconds: float) -> None:
    check_number("lease_seconds", lease_seconds, 0.001, DURATION_LIMIT_SECONDS)


def _check_delay(delay_seconds: float) -> None:
    check_number("delay_seconds", delay_seconds, 0.0, DELAY_LIMIT_SECONDS)
