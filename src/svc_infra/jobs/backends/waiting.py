"""The jobs of one process that wait: those that are due in their lanes, the others by their time."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from svc_infra.jobs.backends.entry import Entry
from svc_infra.jobs.backends.turns import Head, Lane


class Waiting:
    """Where jobs wait until they are claimed."""

    def __init__(self) -> None:
        self._ready: dict[Lane, list[tuple[int, str]]] = {}  # per lane a heap: rank, id
        self._delayed: list[tuple[datetime, str]] = []  # a heap

    def __len__(self) -> int:
        return len(self._delayed) + sum(map(len, self._ready.values()))

    @property
    def next_due(self) -> datetime | None:
        """When the first of those becomes due that are not; None when there is none."""
        return self._delayed[0][0] if self._delayed else None

    def add(self, entry: Entry, now: datetime) -> bool:
        """Put a job where it waits; whether a worker that waits has to know of it."""
        job = entry.job
        if job.available_at <= now:
            heapq.heappush(self._ready.setdefault(entry.lane(), []), (entry.rank(), job.id))
            return True
        heapq.heappush(self._delayed, (job.available_at, job.id))
        return self._delayed[0][1] == job.id

    def remove(self, entry: Entry) -> None:
        """Take a job out of those that wait."""
        lane, place = entry.lane(), (entry.rank(), entry.job.id)
        if place in (heap := self._ready.get(lane, [])):
            heap.remove(place)
            heapq.heapify(heap)
            if not heap:
                del self._ready[lane]
        else:
            self._delayed.remove((entry.job.available_at, entry.job.id))
            heapq.heapify(self._delayed)

    def take_due(self, now: datetime) -> list[str]:
        """Take out those whose time has come since: their ids."""
        due = []
        while self._delayed and self._delayed[0][0] <= now:
            due.append(heapq.heappop(self._delayed)[1])
        return due

    def take_heads(self, queues: Collection[str], limit: int, entries: Mapping[str, Entry]) -> list[Head]:
        """Take out the first `limit` of each lane of these queues; those that do not start are to be given back."""
        heads = []
        for lane, heap in self._ready.items():
            for _ in range(min(limit, len(heap)) if lane.queue in queues else 0):
                rank, job_id = heapq.heappop(heap)
                heads.append(Head(rank, job_id, lane, *entries[job_id].limits()))
        return heads

    def give_back(self, heads: Sequence[Head], chosen: Sequence[Head]) -> None:
        """These heads were taken out, and the chosen ones start."""
        for head in set(heads).difference(chosen):
            heapq.heappush(self._ready[head.lane], (head.rank, head.id))
        for lane in {head.lane for head in chosen if not self._ready[head.lane]}:
            del self._ready[lane]
