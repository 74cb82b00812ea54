"""The queue of a test: it gives jobs out when it is told to, and can be made to fail as real ones do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from svc_infra.jobs import InMemoryJobQueue, Job
from svc_infra.jobs.job import NewJob
from svc_infra.jobs.queue import Completion

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LOOK_SECONDS = 0.002  # of real time, between two looks at whether what was given out has ended


class TestJobQueue(InMemoryJobQueue):
    """A queue in memory that gives nothing out but while `settle` waits.

    Args:
        options: Those of `InMemoryJobQueue`.
    """

    __test__ = False  # pytest collects classes by their names

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stored: Callable[[], Awaitable[None]] | None = None  # called after jobs have been stored
        self.given_out: dict[str, None] = {}  # the ids of what was given out since `settle` began
        self._open = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_empty = False  # as the last look found it since `settle` began
        self._crashes: Counter[str] = Counter()
        self._duplicates: Counter[str] = Counter()

    def crash_before_ack(self, name: str, times: int) -> None:
        """Let the worker die for these many attempts of a task, after the handler and before the queue hears of it."""
        self._crashes[name] += times

    def deliver_twice(self, name: str, times: int) -> None:
        """Give these many jobs of a task to two attempts at once, as happens when a worker stalls beyond its lease."""
        self._duplicates[name] += times

    async def settle(self) -> None:
        """Give jobs out until none is due and none runs."""
        self.given_out.clear()
        self._idle.clear()
        self._is_empty = False
        self._open.set()
        self._wakeup.notify()
        try:
            await self._idle.wait()
        finally:
            self._open.clear()

    def kept(self) -> list[Job]:
        """Every job that is kept, oldest first."""
        return [entry.seen() for entry in self._entries.values()]

    def next_due(self) -> datetime | None:
        """When the next job of those that are put off is due."""
        return self._waiting.next_due

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`. What was given out may have ended and stored more: then the worker looks again."""
        if not self._open.is_set():
            await self._open.wait()
        elif self._running:
            await super().wait(LOOK_SECONDS)
        elif self._is_empty:
            self._idle.set()
            self._open.clear()

    async def reserve(self, **terms: Any) -> list[Job]:
        """See `JobQueue.reserve`."""
        if not self._open.is_set():
            return []
        jobs = await super().reserve(**terms)
        self._is_empty = not jobs
        for job in list(jobs):
            self.given_out[job.id] = None
            if self._duplicates[job.name] > 0:
                self._duplicates[job.name] -= 1
                self._end_lease(job)
                jobs += await super().reserve(**{**terms, "limit": 1, "queues": [job.queue]})
        return jobs

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        """See `JobQueue.ack_many`."""
        crashed = set()
        for job in (one.job for one in completions):
            if self._crashes[job.name] > 0:
                self._crashes[job.name] -= 1
                self._end_lease(job)
                crashed.add(job.id)
        return crashed | await super().ack_many([one for one in completions if one.job.id not in crashed])

    async def _store(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> list[str]:
        ids = await super()._store(jobs, session)
        if self.stored is not None and session is None:
            await self.stored()
        return ids

    def _end_lease(self, job: Job) -> None:
        entry = self._held(job)
        if entry is not None:
            entry.job = replace(entry.job, lease_expires_at=self._clock.now())
