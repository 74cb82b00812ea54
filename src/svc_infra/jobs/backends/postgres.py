"""The queue in PostgreSQL: what one process knows of what waits, so that a claim is one statement."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from svc_infra.db import AsyncDatabase
from svc_infra.errors import SvcInfraError
from svc_infra.jobs.backends.checked import SWEEP_LIMIT_JOBS
from svc_infra.jobs.backends.postgres_steps import CHANNEL, PostgresSteps
from svc_infra.jobs.backends.turns import Lane, Turns, weights_of
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import Job, NewJob
from svc_infra.jobs.queue import QueueInfo
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LANES_LIMIT = 1000
"""How many lanes one process serves in turn; more take their turns after those."""
LOOK_SECONDS = 1.0
"""How often a process looks for lanes that it has not been told of, while it has others."""
SLOW_LOOK_SECONDS = 0.02
"""A look that takes longer has many dead index entries to pass: looks then take 5 % of the time at most."""
SWEEP_SECONDS = 1.0
"""How often a process looks for leases that have ended."""
LOOK_BACK = timedelta(seconds=10)
"""How far back such a look goes; one in `FULL_SWEEP` goes back without end."""
FULL_SWEEP = timedelta(seconds=60)
LISTEN_AGAIN_SECONDS = 1.0
"""How long after a failed attempt to listen the next one comes; meanwhile workers poll."""

_EVER = timedelta(days=36500)
_NEVER = datetime.fromisoformat("9000-01-01T00:00:00+00:00")

_log = logging.getLogger(__name__)


class PostgresJobs:
    """Claims from lanes that it knows: from its own steps, from notices of other processes, from a look at the index.

    Of each lane it remembers the rank below which nothing waits. A claim begins its index scan there, and so does not
    pass the entries of all jobs that were claimed before, which PostgreSQL cannot remove while any old transaction is
    open. A notice of a job below lowers that rank; what a lost notice would have told, the next look finds.

    Args:
        db: The database.
        clock: None for the server's.
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(self, db: AsyncDatabase, *, clock: Clock | None, max_crashes: int) -> None:
        self._steps = PostgresSteps(db)
        self._db = db
        self._clock = clock
        self._max_crashes = max_crashes
        self._wakeup = Wakeup()
        self._turns = Turns()
        self._claiming = asyncio.Lock()
        self._queues: list[str] = ["default"]  # what this process last reserved from
        self._lanes: dict[Lane, int] = {}  # where jobs may wait, and the rank below which none does
        self._told: dict[Lane, int] = {}  # of the jobs that came since the last claim began
        self._configured: dict[str, QueueInfo] = {}
        self._cursor = ""  # the last tenant of a look that found too many lanes
        self._look_at = self._look_not_before = 0.0  # in the event loop's time
        self._offset = timedelta(0)  # the server's clock less this machine's
        self._swept_at = self._sweep_at = self._swept_fully_at = datetime.fromtimestamp(0, SystemClock().now().tzinfo)
        self._listener: Any = None
        self._listen_not_before = 0.0
        self._origin = secrets.token_hex(4)

    @property
    def now(self) -> datetime | None:
        """What to give to statements as the time."""
        return None if self._clock is None else self._clock.now()

    async def insert(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> tuple[int, Callable[[], None]]:
        """Store jobs whose ids and unique keys are free: how many, and what to call when that is committed."""
        rows = await self._steps.insert(jobs, self.now, self._origin, session)

        def committed() -> None:
            for queue, tenant, limit_key, state, rank, wait, *_ in rows:
                if state == "ready":
                    self.came(Lane(queue, tenant, limit_key), rank)
                else:
                    self.comes(wait)

        return sum(row[6] for row in rows), committed

    def came(self, lane: Lane, rank: int) -> None:
        """A job waits here: the next claim looks from this rank on."""
        self._told[lane] = min(rank, self._told.get(lane, rank))
        if len(self._told) > LANES_LIMIT:
            self._told.clear()
            self._look_at = 0.0
        self._wakeup.notify()

    def comes(self, wait: timedelta) -> None:
        """A job becomes due then."""
        self._sweep_at = min(self._sweep_at, self._time() + wait)
        self._wakeup.notify()  # for a shorter wait

    def changed(self) -> None:
        """Something else may have become possible."""
        self._look_at = self._look_not_before = 0.0
        self._wakeup.notify()

    def freed(self, jobs: Sequence[Job]) -> None:
        """These have ended: there may be room under a limit."""
        if any(job.limit_key or job.queue in self._configured for job in jobs):
            self.changed()

    async def tell(self) -> None:
        """Let every process look."""
        self.changed()
        await self._steps.fetch("SELECT pg_notify($1, $2)", CHANNEL, self._origin)

    async def claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """See `JobQueue.reserve`."""
        async with self._claiming:
            if queues != self._queues:
                self._queues, self._lanes, self._look_at = queues, {}, 0.0
                self._sweep_at = self._swept_at
            if not self._swept_at <= self._time() < self._sweep_at:
                await self._sweep()
            looked = await self._look() if self._loop_time() >= self._look_at else False
            jobs = await self._start(worker_id, limit, timedelta(seconds=lease_seconds))
            if not jobs and not looked and self._loop_time() >= self._look_not_before:
                await self._look()
                jobs = await self._start(worker_id, limit, timedelta(seconds=lease_seconds))
            return jobs

    async def succeed(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        """Finish these jobs; the ids of those that were held."""
        return await self._steps.succeed(results, self.now)

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        if self._listener is None and self._loop_time() >= self._listen_not_before and await self._listen():
            await self._look()
            if self._lanes:
                return
        until_due = (self._sweep_at - self._time()).total_seconds()
        await self._wakeup.wait(
            max(0.0, min(timeout_seconds, until_due)) if until_due < SWEEP_SECONDS / 2 else timeout_seconds
        )

    async def _start(self, worker_id: str, limit: int, lease: timedelta) -> list[Job]:
        self._absorb()
        if not self._lanes:
            return []
        weights = weights_of(self._queues, self._configured)
        limited = any(lane.limit_key for lane in self._lanes) or any(
            info.concurrency or info.rate for info in self._configured.values()
        )
        if limited:
            lanes = [(*lane, floor, limit) for lane, floor in self._lanes.items()]
            started = await self._steps.claim_limited(worker_id, self.now, lease, lanes, limit, self._turns, weights)
            self._look_at = 0.0
        else:
            tenants = {lane.tenant for lane in self._lanes}
            shares = self._turns.divide(tenants, limit, weights)
            lanes = [
                (*lane, floor, shares[lane.tenant]) for lane, floor in self._lanes.items() if lane.tenant in shares
            ]
            started = await self._steps.claim(worker_id, self.now, lease, lanes)
            self._learn(started, shares)
        started.sort(key=lambda one: (one[1], one[0].id))
        return [job for job, _ in started]

    def _learn(self, started: Sequence[tuple[Job, int]], shares: dict[str, int]) -> None:
        """From what was found: where nothing is left, and where the next scan begins."""
        starts: dict[str, int] = {}
        for job, rank in started:
            lane = Lane(job.queue, job.tenant, "")
            self._lanes[lane] = max(rank, self._lanes.get(lane, rank))
            starts[job.tenant] = starts.get(job.tenant, 0) + 1
        drained = {tenant for tenant, share in shares.items() if starts.get(tenant, 0) < share}
        self._turns.took({lane.tenant for lane in self._lanes}, starts, weights_of(self._queues, self._configured))
        self._lanes = {lane: floor for lane, floor in self._lanes.items() if lane.tenant not in drained}

    def _absorb(self) -> None:
        for lane, rank in self._told.items():
            if lane.queue in self._queues:
                self._lanes[lane] = min(rank, self._lanes.get(lane, rank))
        self._told.clear()

    async def _look(self) -> bool:
        started = self._loop_time()
        self._told.clear()
        rows = await self._steps.lanes(self._queues, self._cursor, LANES_LIMIT)
        if self._cursor and not rows:
            self._cursor = ""
            rows = await self._steps.lanes(self._queues, "", LANES_LIMIT)
        self._cursor = rows[-1]["tenant"] if len(rows) == LANES_LIMIT else ""
        self._lanes = {Lane(*row[:3]): row["rank"] for row in rows}
        self._configured = await self._steps.configured(self._queues)
        self._lanes = {lane: floor for lane, floor in self._lanes.items() if not self._is_paused(lane.queue)}
        took = self._loop_time() - started
        self._look_at = started + max(LOOK_SECONDS, 20 * took)
        self._look_not_before = started + 20 * took if took > SLOW_LOOK_SECONDS else 0.0
        return True

    def _is_paused(self, queue: str) -> bool:
        return queue in self._configured and self._configured[queue].paused

    async def _sweep(self) -> None:
        back = LOOK_BACK
        if not timedelta(0) <= self._time() - self._swept_fully_at < FULL_SWEEP:
            back = _EVER
        self._sweep_at = _NEVER  # what is told meanwhile counts
        moved, (now, due) = await self._steps.sweep(self._queues, self.now, back, self._max_crashes)
        self._offset += now - self._time()
        self._swept_at = now
        if back == _EVER:
            self._swept_fully_at = now
        upcoming = now if len(moved) >= SWEEP_LIMIT_JOBS else min(now + timedelta(seconds=SWEEP_SECONDS), due or _NEVER)
        self._sweep_at = min(self._sweep_at, max(now, upcoming))
        for row in moved:
            if row["ready"]:
                self.came(Lane(row["queue"], row["tenant"], row["limit_key"]), row["rank"])

    def _time(self) -> datetime:
        return (self._clock or SystemClock()).now() + self._offset

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    async def _listen(self) -> bool:
        self._listen_not_before = self._loop_time() + LISTEN_AGAIN_SECONDS
        try:
            async with self._steps.connection(kept=True) as driver:
                await driver.add_listener(CHANNEL, self._heard)
                driver.add_termination_listener(self._deaf)
        except (SvcInfraError, OSError, TimeoutError) as error:
            _log.warning("jobs.listen_failed", exc_info=error)
            return False
        self._listener = driver
        event.listen(self._db.engine.sync_engine, "engine_disposed", lambda engine: driver.terminate(), once=True)
        return True

    def _deaf(self, driver: Any) -> None:
        self._listener = None
        self.changed()

    def _heard(self, driver: Any, pid: int, channel: str, payload: str) -> None:
        origin, *words = payload.split("\t", 5)
        if origin == self._origin:
            return
        match words:
            case [queue, "ready", rank, limit_key, tenant]:
                if queue in self._queues:
                    self.came(Lane(queue, tenant, limit_key), int(rank))
            case [queue, _, due, *_]:
                if queue in self._queues:
                    self.comes(timedelta(seconds=int(due) / 1e6 - self._time().timestamp()))
            case _:
                self.changed()
