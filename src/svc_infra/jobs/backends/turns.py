"""Which of the jobs that wait start next: tenants take turns, and limits hold some back."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from svc_infra.jobs.job import AGEING_SECONDS
from svc_infra.jobs.queue import QueueInfo

TURNS_LIMIT_TENANTS = 10_000
"""How many waiting tenants one process remembers the turns of; beyond, they begin anew."""
SEARCH_LIMIT_CLAIMS = 20
"""How many claims in a row that get nothing follow each other at once."""


def rank_of(available_at: datetime, priority: int) -> int:
    """The place of a job among those of its tenant, in microseconds: the smallest is the first."""
    return micros(available_at) - priority * round(AGEING_SECONDS * 1e6)


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def queue_key(queue: str) -> str:
    """The limit key of a queue's own limits; no caller's, as those have no spaces."""
    return f"queue {queue}"


class Lane(NamedTuple):
    """Where jobs wait in the order of their ranks."""

    queue: str
    tenant: str
    limit_key: str  # '' for jobs without a limit


class Head(NamedTuple):
    """A job that waits, and what decides whether it starts."""

    rank: int
    id: str
    lane: Lane
    concurrency: int | None = None
    rate: int | None = None
    period_seconds: float = 60.0


@dataclass(slots=True)
class Gate:
    """Lets jobs start as far as the limits of their keys and queues allow.

    Attributes:
        now: In microseconds.
        queues: The configuration of queues that have any.
        running: How many jobs of each limit key and, by `queue_key`, of each queue run.
        due: When the next start of a key is due if starts were even (GCRA's theoretical arrival time), in microseconds.
    """

    now: int
    queues: Mapping[str, QueueInfo]
    running: dict[str, int]
    due: dict[str, int]

    def opens(self, head: Head) -> bool:
        """Let this job start, unless a limit is full; counts it when it starts."""
        limits = (
            [(head.lane.limit_key, head.concurrency, head.rate, head.period_seconds)] if head.lane.limit_key else []
        )
        if (queue := self.queues.get(head.lane.queue)) is not None:
            if queue.paused:
                return False
            limits.append((queue_key(queue.name), queue.concurrency, queue.rate, queue.period_seconds))
        for key, concurrency, rate, period_seconds in limits:
            if concurrency is not None and self.running.get(key, 0) >= concurrency:
                return False
            # Generic cell rate algorithm (ITU-T I.371): a burst of `rate`, then one each period / rate.
            if rate is not None and self._late(key) + round(period_seconds * 1e6 / rate) > period_seconds * 1e6:
                return False
        for key, _, rate, period_seconds in limits:
            self.running[key] = self.running.get(key, 0) + 1
            if rate is not None:
                self.due[key] = self.now + self._late(key) + round(period_seconds * 1e6 / rate)
        return True

    def _late(self, key: str) -> int:
        return max(0, self.due.get(key, 0) - self.now)


class Turns:
    """Divides starts between tenants by their weights (stride scheduling, Waldspurger and Weihl 1995).

    A tenant that had nothing waiting comes back at the present pass: nobody saves turns up.
    """

    def __init__(self) -> None:
        self._passes: dict[str, float] = {}
        self._now = 0.0

    def divide(self, tenants: Iterable[str], limit: int, weights: Mapping[str, float]) -> dict[str, int]:
        """How many of `limit` starts each waiting tenant gets, if it has so many jobs."""
        heap = [(self._passes.get(tenant, self._now), tenant) for tenant in tenants]
        if len(heap) < 2:
            return {tenant: limit for _, tenant in heap}
        heapq.heapify(heap)
        shares: dict[str, int] = {}
        for _ in range(limit):
            at, tenant = heap[0]
            shares[tenant] = shares.get(tenant, 0) + 1
            heapq.heapreplace(heap, (at + 1.0 / weights.get(tenant, 1.0), tenant))
        return shares

    def took(self, waiting: Iterable[str], starts: Mapping[str, int], weights: Mapping[str, float]) -> None:
        """Remember what was started of which tenants that waited."""
        passes = {tenant: self._passes.get(tenant, self._now) for tenant in waiting}
        if len(passes) < 2 or len(passes) > TURNS_LIMIT_TENANTS:
            passes.clear()
        else:
            self._now = min(passes.values())
            for tenant, count in starts.items():
                if tenant in passes:
                    passes[tenant] += count / weights.get(tenant, 1.0)
        self._passes = passes

    def choose(
        self, lanes: Iterable[Iterable[Head]], limit: int, gate: Gate, weights: Mapping[str, float]
    ) -> list[Head]:
        """The jobs to start, and remember them: up to `limit`.

        Args:
            lanes: The jobs of each lane in their order; read only as far as is needed.
        """
        chosen, waiting = self.pick(lanes, limit, gate, weights)
        self.took(waiting, Counter(head.lane.tenant for head in chosen), weights)
        return chosen

    def pick(
        self, lanes: Iterable[Iterable[Head]], limit: int, gate: Gate, weights: Mapping[str, float]
    ) -> tuple[list[Head], list[str]]:
        """What `choose` would, and the tenants that waited; nothing is remembered."""
        waiting: dict[str, list[tuple[Head, Iterator[Head]]]] = {}
        for lane in map(iter, lanes):
            if (head := next(lane, None)) is not None:
                waiting.setdefault(head.lane.tenant, []).append((head, lane))
        for those in waiting.values():
            heapq.heapify(those)
        chosen: list[Head] = []
        turns = [(self._passes.get(tenant, self._now), tenant) for tenant in waiting]
        heapq.heapify(turns)
        while turns and len(chosen) < limit:
            at, tenant = turns[0]
            if (head := _first_open(waiting[tenant], gate)) is None:
                heapq.heappop(turns)
                continue
            chosen.append(head)
            heapq.heapreplace(turns, (at + 1.0 / weights.get(tenant, 1.0), tenant))
        return chosen, list(waiting)


class Search:
    """Whether a claim that saw only some of the lanes and got too little is to be followed by another at once."""

    def __init__(self) -> None:
        self._in_vain = 0

    def goes_on(self, started: int, limit: int, *, more: bool) -> bool:
        """What a claim has started of how many, and whether there are more lanes; a long search takes rests."""
        self._in_vain = 0 if started else self._in_vain + 1
        return more and started < limit and (started > 0 or self._in_vain % SEARCH_LIMIT_CLAIMS > 0)


def _first_open(lanes: list[tuple[Head, Iterator[Head]]], gate: Gate) -> Head | None:
    """Take the first job out of a heap of lanes; a lane whose first one a limit holds back is out."""
    while lanes:
        head, lane = lanes[0]
        opens = gate.opens(head)
        following = next(lane, None) if opens else None
        if following is None:
            heapq.heappop(lanes)
        else:
            heapq.heapreplace(lanes, (following, lane))
        if opens:
            return head
    return None


def in_lanes(heads: Iterable[Head]) -> list[list[Head]]:
    """Jobs in any order, as `Turns.choose` takes them."""
    lanes: dict[Lane, list[Head]] = {}
    for head in sorted(heads):
        lanes.setdefault(head.lane, []).append(head)
    return list(lanes.values())


def weights_of(queues: Sequence[str], configured: Mapping[str, QueueInfo]) -> dict[str, float]:
    """The tenants' weights for a worker of these queues: those of the queue that it names first."""
    weights: dict[str, float] = {}
    for name in reversed(queues):
        if name in configured:
            weights.update(configured[name].weights)
    return weights
