"""The queue of one process, for tests and for trying things out."""

from __future__ import annotations

import builtins
import heapq
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from svc_infra.db import after_commit
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, UnavailableError
from svc_infra.jobs.backends.checked import SWEEP_LIMIT_JOBS, CheckedQueue, lease_ended
from svc_infra.jobs.backends.entry import Entry
from svc_infra.jobs.backends.turns import Gate, Turns, in_lanes, micros, queue_key, weights_of
from svc_infra.jobs.backends.waiting import Waiting
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    Job,
    JobState,
    NewJob,
)
from svc_infra.jobs.queue import Beat, QueueInfo, QueueStats
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
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        max_jobs: int = 100_000,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds, max_crashes=max_crashes)
        self._clock = clock if clock is not None else SystemClock()
        self._max_jobs = max_jobs
        self._entries: dict[str, Entry] = {}
        self._unique: dict[str, str] = {}
        self._waiting = Waiting()
        self._running: set[str] = set()
        self._finished: dict[str, None] = {}  # succeeded or cancelled, in the order in which they finished
        self._configured: dict[str, QueueInfo] = {}
        self._due: dict[str, int] = {}  # of the keys with a rate: see `Gate.due`
        self._turns = Turns()
        self._wakeup = Wakeup()

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`. It ends when the next job is due, whoever else takes that."""
        if (due := self._waiting.next_due) is not None:
            timeout_seconds = min(timeout_seconds, (due - self._clock.now()).total_seconds())
        await self._wakeup.wait(timeout_seconds)

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        entry = self._entries.get(job_id)
        return None if entry is None else entry.seen()

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        self._restart(self._kept(job_id, JobState.DEAD, JobState.CANCELLED), self._clock.now())

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        entry = self._kept(job_id, JobState.READY, JobState.RUNNING)
        if entry.job.state is JobState.RUNNING:
            entry.job = replace(entry.job, cancel_requested=True)
        else:
            self._waiting.remove(entry)
            self._finish(entry, JobState.CANCELLED)

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        counts = Counter(entry.job.state for entry in self._entries.values())
        age = max((info.oldest_due_age_seconds for info in await self.queues()), default=0.0)
        return QueueStats({state: counts[state] for state in JobState}, age)

    async def queues(self) -> builtins.list[QueueInfo]:
        """See `JobStore.queues`."""
        now = self._clock.now()
        infos = dict(self._configured)
        for job in (entry.job for entry in self._entries.values()):
            info = infos.get(job.queue) or QueueInfo(name=job.queue)
            if job.state is JobState.READY:
                age = max(info.oldest_due_age_seconds, (now - job.available_at).total_seconds())
                infos[job.queue] = replace(info, ready=info.ready + 1, oldest_due_age_seconds=age)
            elif job.state is JobState.RUNNING:
                infos[job.queue] = replace(info, running=info.running + 1)
        return [infos[name] for name in sorted(infos)]

    async def _list(
        self, state: JobState | None, equal: Mapping[str, str], before: str | None, limit: int
    ) -> builtins.list[Job]:
        def place(entry: Entry) -> tuple[datetime, str]:
            return entry.job.created_at, entry.job.id

        wanted = [entry for entry in self._entries.values() if entry.has(state, equal)]
        if before is not None:
            last = self._entries.get(before)
            wanted = [entry for entry in wanted if last is not None and place(entry) < place(last)]
        return [entry.seen() for entry in heapq.nlargest(limit, wanted, key=place)]

    async def _retry_many(self, equal: Mapping[str, str], limit: int, spacing_seconds: float) -> int:
        dead = [entry for entry in self._entries.values() if entry.has(JobState.DEAD, equal)]
        dead.sort(key=lambda entry: (entry.job.finished_at, entry.job.id))
        for number, entry in enumerate(dead[:limit]):
            self._restart(entry, self._after(number * spacing_seconds))
        return len(dead[:limit])

    async def _edit(self, job_id: str, payload: str) -> None:
        self._kept(job_id, JobState.READY, JobState.DEAD).payload = payload

    async def _purge(self, older_than_seconds: float, limit: int, dead: bool) -> int:
        before = self._after(-older_than_seconds)
        ended = self._finished
        if dead:
            entries = [entry.job for entry in self._entries.values() if entry.job.state is JobState.DEAD]
            ended = dict.fromkeys(job.id for job in sorted(entries, key=lambda job: (job.finished_at, job.id)))
        old: builtins.list[str] = []
        for job_id in ended:
            finished_at = self._entries[job_id].job.finished_at
            if len(old) >= limit or finished_at is None or finished_at > before:
                break
            old.append(job_id)
        for job_id in old:
            self._forget(job_id)
        return len(old)

    async def _pause(self, queue: str, paused: bool) -> None:
        self._keep(replace(self._configured.get(queue) or QueueInfo(name=queue), paused=paused))

    async def _configure(self, queue: QueueInfo) -> None:
        known = self._configured.get(queue.name)
        self._keep(replace(queue, paused=known is not None and known.paused))

    def _keep(self, queue: QueueInfo) -> None:
        self._configured[queue.name] = queue
        if queue == QueueInfo(name=queue.name):
            del self._configured[queue.name]
        self._wakeup.notify()

    async def _store(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> builtins.list[str]:
        held = [self._holder(job) for job in jobs]
        if None in held:
            self._make_room(held.count(None))
        if session is not None:
            after_commit(session, lambda: [self._insert(job) for job in jobs])
            return [job.id if holder is None else holder for job, holder in zip(jobs, held, strict=True)]
        return [self._insert(job) for job in jobs]

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        now = self._clock.now()
        self._sweep(now)
        chosen = self._chosen(queues, limit, now)
        for entry in chosen:
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
        return [entry.seen() for entry in chosen]

    def _chosen(self, queues: Sequence[str], limit: int, now: datetime) -> builtins.list[Entry]:
        heads = self._waiting.take_heads(queues, limit, self._entries)
        running: Counter[str] = Counter()
        for job in (self._entries[job_id].job for job_id in self._running):
            running.update((queue_key(job.queue), job.limit_key or ""))
        gate = Gate(micros(now), self._configured, running, self._due)
        chosen = self._turns.choose(in_lanes(heads), limit, gate, weights_of(queues, self._configured))
        self._due = {key: due for key, due in self._due.items() if due > gate.now}
        self._waiting.give_back(heads, chosen)
        return [self._entries[head.id] for head in chosen]

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        end = self._after(lease_seconds)
        held = [entry for job in jobs if (entry := self._held(job)) is not None]
        for entry in held:
            entry.job = replace(entry.job, lease_expires_at=end)
        return Beat(
            frozenset(entry.job.id for entry in held),
            frozenset(entry.job.id for entry in held if entry.job.cancel_requested),
        )

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        _refuse_session(session)
        return bool(await self._succeed_many([(job, result)]))

    async def _succeed_many(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        done = set()
        for job, result in results:
            if (entry := self._held(job)) is not None:
                entry.result = result
                self._finish(entry, JobState.SUCCEEDED)
                done.add(job.id)
        return done

    async def _fail(
        self, job: Job, error: str, fingerprint: str, delay_seconds: float, end: JobState | None, crashed: bool
    ) -> JobState | None:
        if (entry := self._held(job)) is None:
            return None
        crashes = entry.job.crashes + crashed
        kept = entry.job = replace(entry.job, last_error=error, fingerprint=fingerprint, crashes=crashes)
        if kept.attempts - kept.crashes >= kept.max_attempts:
            end = end or JobState.DEAD
        self._give_back(entry, self._after(delay_seconds), end)
        return entry.job.state

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        if (entry := self._held(job)) is None:
            return False
        due = self._after(delay_seconds) if delay_seconds else min(self._clock.now(), entry.job.available_at)
        entry.job = replace(entry.job, attempts=entry.job.attempts - 1)
        self._give_back(entry, due, None)
        return True

    async def _progress(self, job: Job, done: int, total: int, session: AsyncSession | None) -> bool:
        _refuse_session(session)
        if (entry := self._held(job)) is None:
            return False
        entry.job = replace(entry.job, progress_done=done, progress_total=total)
        return True

    def _holder(self, job: NewJob) -> str | None:
        if job.id in self._entries:
            return job.id
        if job.unique is None or (holder := self._unique.get(job.unique.key)) is None:
            return None
        return holder if self._entries[holder].holds(job.unique, self._clock.now()) else None

    def _insert(self, new: NewJob) -> str:
        if (holder := self._holder(new)) is not None:
            entry = self._entries[holder]
            if holder == new.id or entry.job.state is not JobState.READY or new.unique is None:
                return holder
            if new.unique.on_conflict != "skip":
                self._waiting.remove(entry)
                waits_until = self._due_at(new) if new.unique.on_conflict == "debounce" else entry.job.available_at
                self._put(new, holder, created_at=entry.job.created_at, available_at=waits_until)
            return holder
        if new.unique is not None and (former := self._unique.get(new.unique.key)) is not None:
            self._entries[former].job = replace(self._entries[former].job, unique_key=None)
        self._put(new, new.id, created_at=self._clock.now(), available_at=self._due_at(new))
        return new.id

    def _put(self, new: NewJob, job_id: str, *, created_at: datetime, available_at: datetime) -> None:
        job = Job(
            id=job_id,
            name=new.name,
            payload={},
            queue=new.queue,
            state=JobState.READY,
            priority=new.priority,
            max_attempts=new.max_attempts,
            backoff_seconds=new.backoff_seconds,
            timeout_seconds=new.timeout_seconds,
            created_at=created_at,
            available_at=available_at,
            unique_key=None if new.unique is None else new.unique.key,
            limit_key=None if new.limit is None else new.limit.key,
            tenant=new.tenant,
        )
        self._entries[job_id] = entry = Entry(job, new.payload, new.context, new.limit)
        if job.unique_key is not None:
            self._unique[job.unique_key] = job_id
        self._offer(entry, available_at=available_at)

    def _due_at(self, new: NewJob) -> datetime:
        now = self._clock.now()
        return max(now, new.at) if new.at is not None else now + timedelta(seconds=new.delay_seconds)

    def _make_room(self, count: int) -> None:
        surplus = len(self._entries) + count - self._max_jobs
        if surplus > len(self._finished):
            raise UnavailableError(f"The queue in memory is full: {self._max_jobs} jobs wait, run or are dead.")
        for _ in range(surplus):
            self._forget(next(iter(self._finished)))

    def _sweep(self, now: datetime) -> None:
        ended = [
            entry
            for job_id in self._running
            if (entry := self._entries[job_id]).job.lease_expires_at is not None and entry.job.lease_expires_at <= now
        ]
        for entry in ended[:SWEEP_LIMIT_JOBS]:
            job = entry.job
            facts = lease_ended(job.worker_id, job.started_at, job.lease_expires_at)
            entry.job = replace(job, crashes=job.crashes + 1, last_error=facts)
            self._give_back(
                entry, min(now, job.available_at), JobState.DEAD if job.crashes + 1 >= self._max_crashes else None
            )
        for job_id in self._waiting.take_due(now):
            self._waiting.add(self._entries[job_id], now)
            self._wakeup.notify()

    def _held(self, job: Job) -> Entry | None:
        entry = self._entries.get(job.id)
        if entry is None or entry.job.state is not JobState.RUNNING or entry.job.token != job.token:
            return None
        return entry

    def _kept(self, job_id: str, *states: JobState) -> Entry:
        entry = self._entries.get(job_id)
        if entry is None:
            raise NotFoundError("Job", job_id)
        if entry.job.state not in states:
            raise ConflictError(f"The job is {entry.job.state}.")
        return entry

    def _give_back(self, entry: Entry, available_at: datetime, end: JobState | None) -> None:
        if entry.job.cancel_requested:
            end = JobState.CANCELLED
        if end is not None:
            self._finish(entry, end)
        else:
            self._offer(entry, available_at=available_at)

    def _restart(self, entry: Entry, available_at: datetime) -> None:
        self._finished.pop(entry.job.id, None)
        zeros = dict.fromkeys(("attempts", "crashes", "progress_done", "progress_total"), 0)
        self._offer(entry, available_at=available_at, finished_at=None, cancel_requested=False, **zeros)

    def _offer(self, entry: Entry, *, available_at: datetime, **changes: Any) -> None:
        self._let_go(entry, state=JobState.READY, available_at=available_at, **changes)
        if self._waiting.add(entry, self._clock.now()):
            self._wakeup.notify()

    def _finish(self, entry: Entry, state: JobState) -> None:
        job = self._let_go(entry, state=state, finished_at=self._clock.now())
        if state is not JobState.DEAD:
            self._finished[job.id] = None
        if job.limit_key or job.queue in self._configured:
            self._wakeup.notify()  # there may be room under a limit

    def _let_go(self, entry: Entry, **changes: Any) -> Job:
        self._running.discard(entry.job.id)
        entry.job = replace(entry.job, token=None, lease_expires_at=None, **changes)
        return entry.job

    def _forget(self, job_id: str) -> None:
        job = self._entries.pop(job_id).job
        self._finished.pop(job_id, None)
        if job.unique_key is not None:
            del self._unique[job.unique_key]

    def _after(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=seconds)


def _refuse_session(session: AsyncSession | None) -> None:
    if session is not None:
        raise ConfigurationError("A queue in memory cannot finish a job in a transaction: use SqlJobQueue.")
