"""Schedules in one process's memory."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from svc_infra.jobs.schedules.store import TICKS_KEPT, Look, Outcome, Record, StoreJob, Tick
from svc_infra.types import Clock, SystemClock


class InMemoryScheduleStore:
    """Keeps schedules in this process's memory: each process decides for itself, and the jobs' ids make them unique.

    What was edited or paused here is forgotten with the process.

    Args:
        clock: Where the time comes from.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock if clock is not None else SystemClock()
        self._records: dict[str, Record] = {}
        self._ticks: dict[str, dict[datetime, Tick]] = {}
        self._writing = asyncio.Lock()

    async def look(self) -> Look:
        """See `ScheduleStore.look`."""
        return Look(self._clock.now(), dict(self._records))

    async def insert(self, record: Record) -> bool:
        """See `ScheduleStore.insert`."""
        return self._records.setdefault(record.name, record) is record

    async def write(
        self, before: Record, after: Record, ticks: Sequence[Tick] = (), store_job: StoreJob | None = None
    ) -> builtins.list[Tick] | None:
        """See `ScheduleStore.write`; a job may have been stored although this raises, and is not stored again."""
        async with self._writing:
            if not self._holds(before):
                return None
            known = self._ticks.setdefault(before.name, {})
            accepted = [
                tick for tick in ticks if tick.due not in known or known[tick.due].outcome is not Outcome.STORED
            ]
            if store_job is not None:
                for tick in accepted:
                    if tick.outcome is Outcome.STORED:
                        await store_job(tick, None)
            for tick in accepted:
                there = known.get(tick.due, tick)
                known[tick.due] = replace(there, outcome=tick.outcome, job_id=tick.job_id, decided_at=tick.decided_at)
            self._records[before.name] = replace(after, version=before.version + 1)
            return accepted

    async def delete(self, record: Record) -> bool:
        """See `ScheduleStore.delete`."""
        async with self._writing:
            if held := self._holds(record):
                del self._records[record.name]
            return held

    async def is_under_way(self, job_id: str) -> bool:
        """See `ScheduleStore.is_under_way`."""
        return False

    async def ticks(self, name: str, limit: int = 50) -> builtins.list[Tick]:
        """See `ScheduleStore.ticks`."""
        return sorted(self._ticks.get(name, {}).values(), key=lambda tick: tick.due, reverse=True)[:limit]

    async def purge(self, *, before: datetime, keep: int = TICKS_KEPT, limit: int = 10_000) -> int:
        """See `ScheduleStore.purge`."""
        old = [
            (name, due)
            for name, ticks in self._ticks.items()
            for place, due in enumerate(sorted(ticks, reverse=True))
            if place >= keep or ticks[due].decided_at < before
        ][:limit]
        for name, due in old:
            del self._ticks[name][due]
        return len(old)

    def _holds(self, record: Record) -> bool:
        held = self._records.get(record.name)
        return held is not None and held.version == record.version
