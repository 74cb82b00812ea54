"""The queue of one process, for tests and for trying things out."""

from __future__ import annotations

import builtins
import heapq
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from svc_infra.db import after_commit
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, UnavailableError
from svc_infra.jobs.backends.checked import LEASE_ENDED, SWEEP_LIMIT_JOBS, CheckedQueue
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    Job,
    JobState,
    NewJob,
    read_object,
    read_result,
)
from svc_infra.jobs.queue import Beat, QueueStats
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class InMemoryJobQueue(CheckedQueue):
    """Keeps jobs in this process's memory: whatever ends the process loses all of them.

    `session=` stores the job right after that unit of work has committed; a process that dies in between loses it.

    Args:
        clock: Where the time comes from.
        max_jobs: Jobs kept. When full, the job that finished first makes room; when none has, the queue refuses.
        max_attempts, backoff_seconds: For jobs that are enqueued without their own.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        max_jobs: int = 100_000,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds)
        self._clock = clock if clock is not None else SystemClock()
        self._max_jobs = max_jobs
        self._entries: dict[str, _Entry] = {}
        self._unique: dict[str, str] = {}
        self._ready: dict[str, list[tuple[int, datetime, str]]] = {}  # per queue a heap: priority, due, id
        self._delayed: list[tuple[datetime, str]] = []  # a heap
        self._running: set[str] = set()
        self._finished: dict[str, None] = {}  # succeeded or cancelled, in the order in which they finished
        self._wakeup = Wakeup()

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        await self._wakeup.wait(timeout_seconds)

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        entry = self._entries.get(job_id)
        return None if entry is None else entry.seen()

    async def list(
        self, *, state: JobState | None = None, queue: str | None = None, limit: int = 100
    ) -> builtins.list[Job]:
        """See `JobStore.list`."""
        wanted = [
            entry
            for entry in self._entries.values()
            if state in (None, entry.job.state) and queue in (None, entry.job.queue)
        ]
        newest = heapq.nlargest(limit, wanted, key=lambda entry: (entry.job.created_at, entry.job.id))
        return [entry.seen() for entry in newest]

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        entry = self._kept(job_id, JobState.DEAD, JobState.CANCELLED)
        self._finished.pop(job_id, None)
        self._offer(
            entry,
            available_at=self._clock.now(),
            attempts=0,
            crashes=0,
            finished_at=None,
            progress_done=0,
            progress_total=0,
        )

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        entry = self._kept(job_id, JobState.READY)
        self._delayed = [item for item in self._delayed if item[1] != job_id]
        heapq.heapify(self._delayed)
        if heap := self._ready.get(entry.job.queue):
            heap[:] = [item for item in heap if item[2] != job_id]
            heapq.heapify(heap)
        self._finish(entry, JobState.CANCELLED)

    async def purge(self, *, older_than_seconds: float, limit: int = 1000) -> int:
        """See `JobStore.purge`."""
        before = self._clock.now() - timedelta(seconds=older_than_seconds)
        old: builtins.list[str] = []
        for job_id in self._finished:
            finished_at = self._entries[job_id].job.finished_at
            if len(old) >= limit or finished_at is None or finished_at > before:
                break
            old.append(job_id)
        for job_id in old:
            self._forget(job_id)
        return len(old)

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        now = self._clock.now()
        counts = Counter(entry.job.state for entry in self._entries.values())
        due = [
            entry.job.available_at
            for entry in self._entries.values()
            if entry.job.state is JobState.READY and entry.job.available_at <= now
        ]
        age = (now - min(due)).total_seconds() if due else 0.0
        return QueueStats({state: counts[state] for state in JobState}, age)

    async def _store(self, job: NewJob, session: AsyncSession | None) -> str:
        if (kept := self._holder(job)) is not None:
            return kept
        self._make_room()
        if session is None:
            self._insert(job)
        else:
            after_commit(session, lambda: self._insert(job))
        return job.id

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        now = self._clock.now()
        self._sweep(now)
        claimed = []
        for entry in self._heads(queues, limit):
            entry.job = replace(
                entry.job,
                state=JobState.RUNNING,
                attempts=entry.job.attempts + 1,
                started_at=now,
                token=secrets.token_hex(16),
                worker_id=worker_id,
                lease_expires_at=now + timedelta(seconds=lease_seconds),
            )
            self._running.add(entry.job.id)
            claimed.append(entry.seen())
        return claimed

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        end = self._clock.now() + timedelta(seconds=lease_seconds)
        held = [entry for job in jobs if (entry := self._held(job)) is not None]
        for entry in held:
            entry.job = replace(entry.job, lease_expires_at=end)
        return Beat(frozenset(entry.job.id for entry in held))

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        if session is not None:
            raise ConfigurationError("A queue in memory cannot finish a job in a transaction: use SqlJobQueue.")
        if (entry := self._held(job)) is None:
            return False
        entry.result = result
        self._finish(entry, JobState.SUCCEEDED)
        return True

    async def _fail(self, job: Job, error: str, delay_seconds: float, dead: bool) -> JobState | None:
        if (entry := self._held(job)) is None:
            return None
        self._give_back(entry, error=error, available_at=self._after(delay_seconds), dead=dead)
        return entry.job.state

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        if (entry := self._held(job)) is None:
            return False
        due = self._after(delay_seconds) if delay_seconds else entry.job.available_at
        self._offer(entry, available_at=due, attempts=entry.job.attempts - 1)
        return True

    async def _progress(self, job: Job, done: int, total: int) -> bool:
        if (entry := self._held(job)) is None:
            return False
        entry.job = replace(entry.job, progress_done=done, progress_total=total)
        return True

    def _holder(self, job: NewJob) -> str | None:
        if job.id in self._entries:
            return job.id
        return self._unique.get(job.unique_key) if job.unique_key is not None else None

    def _insert(self, new: NewJob) -> None:
        if self._holder(new) is not None:
            return
        now = self._clock.now()
        job = Job(
            id=new.id,
            name=new.name,
            payload={},
            queue=new.queue,
            state=JobState.READY,
            priority=new.priority,
            max_attempts=new.max_attempts,
            backoff_seconds=new.backoff_seconds,
            timeout_seconds=new.timeout_seconds,
            created_at=now,
            available_at=now,
            unique_key=new.unique_key,
        )
        self._entries[new.id] = entry = _Entry(job, new.payload, new.context)
        if new.unique_key is not None:
            self._unique[new.unique_key] = new.id
        self._offer(entry, available_at=self._after(new.delay_seconds))

    def _make_room(self) -> None:
        if len(self._entries) < self._max_jobs:
            return
        if not self._finished:
            raise UnavailableError(f"The queue in memory is full: {self._max_jobs} jobs wait, run or are dead.")
        self._forget(next(iter(self._finished)))

    def _sweep(self, now: datetime) -> None:
        ended = [
            entry
            for job_id in self._running
            if (entry := self._entries[job_id]).job.lease_expires_at is not None and entry.job.lease_expires_at <= now
        ]
        for entry in ended[:SWEEP_LIMIT_JOBS]:
            job = entry.job = replace(entry.job, crashes=entry.job.crashes + 1)
            self._give_back(entry, error=LEASE_ENDED, available_at=job.available_at, dead=False)
        while self._delayed and self._delayed[0][0] <= now:
            available_at, job_id = heapq.heappop(self._delayed)
            self._offer(self._entries[job_id], available_at=available_at)

    def _heads(self, queues: Sequence[str], limit: int) -> Iterator[_Entry]:
        for _ in range(limit):
            heaps = [heap for name in queues if (heap := self._ready.get(name))]
            if not heaps:
                return
            heap = min(heaps, key=lambda heap: heap[0])
            job_id = heapq.heappop(heap)[2]
            entry = self._entries[job_id]
            if not heap:
                del self._ready[entry.job.queue]
            yield entry

    def _held(self, job: Job) -> _Entry | None:
        entry = self._entries.get(job.id)
        if entry is None or entry.job.state is not JobState.RUNNING or entry.job.token != job.token:
            return None
        return entry

    def _kept(self, job_id: str, *states: JobState) -> _Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise NotFoundError("Job", job_id)
        if entry.job.state not in states:
            raise ConflictError(f"The job is {entry.job.state}.")
        return entry

    def _give_back(self, entry: _Entry, *, error: str, available_at: datetime, dead: bool) -> None:
        entry.job = replace(entry.job, last_error=error)
        if dead or entry.job.attempts >= entry.job.max_attempts:
            self._finish(entry, JobState.DEAD)
        else:
            self._offer(entry, available_at=available_at)

    def _offer(self, entry: _Entry, *, available_at: datetime, **changes: Any) -> None:
        job = self._let_go(entry, state=JobState.READY, available_at=available_at, **changes)
        if available_at > self._clock.now():
            heapq.heappush(self._delayed, (available_at, job.id))
        else:
            heapq.heappush(self._ready.setdefault(job.queue, []), (-job.priority, available_at, job.id))
            self._wakeup.notify()

    def _finish(self, entry: _Entry, state: JobState) -> None:
        job = self._let_go(entry, state=state, finished_at=self._clock.now())
        if state is not JobState.DEAD:
            self._finished[job.id] = None

    def _let_go(self, entry: _Entry, **changes: Any) -> Job:
        self._running.discard(entry.job.id)
        entry.job = replace(entry.job, token=None, lease_expires_at=None, **changes)
        return entry.job

    def _forget(self, job_id: str) -> None:
        job = self._entries.pop(job_id).job
        del self._finished[job_id]
        if job.unique_key is not None:
            del self._unique[job.unique_key]

    def _after(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=seconds)


@dataclass(slots=True)
class _Entry:
    """A job and the texts that are read anew each time it is shown, so that no handler changes what is kept."""

    job: Job
    payload: str
    context: str
    result: str | None = None

    def seen(self) -> Job:
        return replace(
            self.job,
            payload=read_object(self.payload),
            context=read_object(self.context),
            result=read_result(self.result),
        )
