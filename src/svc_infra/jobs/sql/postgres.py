"""The queue in PostgreSQL: what one process knows of what waits, so that a claim is one statement."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from svc_infra.db import AsyncDatabase
from svc_infra.errors import SvcInfraError
from svc_infra.jobs.backends.checked import SWEEP_LIMIT_JOBS
from svc_infra.jobs.backends.turns import Lane, Search, Turns, weights_of
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import Job, NewJob
from svc_infra.jobs.queue import QueueInfo
from svc_infra.jobs.sql.postgres_steps import CHANNEL, CLAIMS, ENDS, LANES_LIMIT, PostgresSteps
from svc_infra.obs import metrics
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LOOK_SECONDS = 1.0
"""How often a process looks for lanes that it has not been told of, while it has others."""
SLOW_LOOK_SECONDS = 0.05
"""A look that takes longer has many dead index entries to pass: while notices come, looks then take 5 % of the time."""
SWEEP_SECONDS = 1.0
"""How often a process looks for leases that have ended."""
LOOK_BACK = timedelta(seconds=2)
"""How far beyond the last one such a look goes back; one in `FULL_SWEEP` goes back without end."""
FULL_SWEEP = timedelta(seconds=60)
TELL_LIMIT = 100
"""How many notices go out one by one; more are replaced by one that lets the others look."""
LISTEN_AGAIN_SECONDS = 1.0
"""How long after a failed attempt to listen the next one comes; meanwhile workers poll."""

Place = tuple[int, str]
"""Rank and id: the order in which the jobs of a lane start."""

_EVER = timedelta(days=36500)
_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

_log = logging.getLogger(__name__)


class PostgresJobs:
    """Claims from lanes that it knows: from its own steps, from notices of other processes, from a look at the index.

    Of each lane it remembers the place before which nothing waits. A claim begins its index scan there, and so does not
    pass the entries of all jobs that were claimed before, which PostgreSQL cannot remove while any old transaction is
    open. A notice of a job before that lowers it; what a lost notice would have told, the next look finds.

    Args:
        db: The database.
        clock: None for the server's.
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(self, db: AsyncDatabase, *, clock: Clock | None, max_crashes: int) -> None:
        self._steps = PostgresSteps(db)
        self._clock = clock
        self._max_crashes = max_crashes
        self._wakeup = Wakeup()
        self._turns = Turns()
        self._search = Search()
        self._claiming = asyncio.Lock()
        self._queues: list[str] = ["default"]  # what this process last reserved from
        self._lanes: dict[Lane, Place] = {}  # where jobs may wait, and the place before which none does
        self._told: dict[Lane, Place] = {}  # of the jobs that came since the last claim began
        self._configured: dict[str, QueueInfo] = {}
        self._look_at = self._look_not_before = self._configured_until = 0.0  # in the event loop's time
        self._limited = False  # as the last claim found it
        self._offset = timedelta(0)  # the server's clock less this machine's
        self._due: datetime | None = None  # when the next delayed job is due, as far as this process knows
        self._swept_at = self._swept_fully_at = _LONG_AGO
        self._listener: Any = None
        self._listen_not_before = 0.0
        self._untold: list[str] = []
        self._telling: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._origin = secrets.token_hex(4)
        event.listen(db.engine.sync_engine, "engine_disposed", self._disposed)

    def _disposed(self, engine: Any) -> None:
        """A look that goes on would give its connection back to a pool that is gone, and leave it open."""
        if self._catching_up is not None:
            self._catching_up.cancel()

    @property
    def now(self) -> datetime | None:
        """What to give to statements as the time."""
        return None if self._clock is None else self._clock.now()

    async def insert(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> tuple[int, Callable[[], None]]:
        """Store jobs whose ids and unique keys are free: how many, and what to call when that is committed."""
        rows = await self._steps.insert(jobs, self.now, session)

        def committed() -> None:
            for queue, tenant, limit_key, state, rank, wait, _, due in rows:
                if state == "ready":
                    self.came(Lane(queue, tenant, limit_key), rank)
                else:
                    self.comes(wait)
                number = rank if state == "ready" else due
                self._tell("\t".join((self._origin, queue, state, str(number), limit_key, tenant)))

        return sum(row[6] for row in rows), committed

    def came(self, lane: Lane, rank: int) -> None:
        """A job waits here: the next claim looks from this rank on."""
        self._lower(self._told, lane, (rank, ""))
        if len(self._told) > LANES_LIMIT:
            self._told.clear()
            self._look_at = 0.0
        self._wakeup.notify()

    def comes(self, wait: timedelta) -> None:
        """A job becomes due then."""
        due = self._time() + wait
        self._due = due if self._due is None else min(self._due, due)
        self._wakeup.notify()  # for a shorter wait

    def changed(self) -> None:
        """Something else may have become possible."""
        self._look_at = self._look_not_before = self._configured_until = 0.0
        self._wakeup.notify()

    def freed(self, jobs: Sequence[Job]) -> None:
        """These have ended: there may be room under a limit."""
        if any(job.limit_key or job.queue in self._configured for job in jobs):
            self.changed()

    async def tell(self) -> None:
        """Let every process look."""
        self.changed()
        await self._steps.notify([self._origin])

    def _tell(self, payload: str) -> None:
        """Tell the other processes soon, of all that has come until then at once.

        Not in the transaction that stores the jobs: of those that notify, PostgreSQL commits only one at a time.
        """
        if len(self._untold) <= TELL_LIMIT:
            self._untold.append(payload)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def _tell_all(self) -> None:
        while self._untold:
            payloads = list(dict.fromkeys(self._untold)) if len(self._untold) <= TELL_LIMIT else [self._origin]
            self._untold.clear()
            try:
                await self._steps.notify(payloads)
            except SvcInfraError as error:  # their next look finds what this would have told
                metrics.increment("jobs.notify_failed")
                _log.warning("jobs.notify_failed", exc_info=error)

    async def claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """See `JobQueue.reserve`."""
        async with self._claiming:
            if queues != self._queues:
                self._queues, self._lanes = queues, {}
                self._look_at = self._configured_until = 0.0
                self._swept_at = self._swept_fully_at = _LONG_AGO
            looked = await self._keep_up()
            lease = timedelta(seconds=lease_seconds)
            jobs = await self._start(worker_id, limit, lease)
            for again in (False, True):  # a look may have begun too early, or tell of a job that is gone
                if jobs or looked or not await self._look_for_once(again=again):
                    break
                looked = self._is_apart
                jobs = await self._start(worker_id, limit, lease)
            if self._search.goes_on(len(jobs), limit, more=self._limited and self._steps.more_lanes):
                self._wakeup.notify()
            return jobs

    async def succeed(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        """Finish these jobs; the ids of those that were held."""
        if self._listener is not None:
            await self._steps.connections.keep(ENDS)
        return await self._steps.succeed(results, self.now)

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        if self._listener is None and self._loop_time() >= self._listen_not_before and await self._listen():
            async with self._claiming:
                await self._look()
            if self._lanes:
                return
        if self._due is not None and (until_due := (self._due - self._time()).total_seconds()) > 0:
            timeout_seconds = min(timeout_seconds, until_due)
        await self._wakeup.wait(timeout_seconds)

    async def _start(self, worker_id: str, limit: int, lease: timedelta) -> list[Job]:
        self._absorb()
        weights = weights_of(self._queues, self._configured)
        started: list[tuple[Job, int]] = []
        self._limited = any(lane.limit_key for lane in self._lanes) or any(
            one.is_limited for one in self._configured.values()
        )
        if self._limited:
            if self._lanes:
                lanes = [(*lane, *place, limit) for lane, place in self._lanes.items()]
                started = await self._steps.claim_limited(
                    worker_id, self.now, lease, lanes, limit, self._turns, weights
                )
            self._look_at = 0.0
        else:
            while self._lanes and len(started) < limit:  # each time round, a tenant that had less than its share is out
                shares = self._turns.divide({lane.tenant for lane in self._lanes}, limit - len(started), weights)
                lanes = [
                    (*one, *place, shares[one.tenant]) for one, place in self._lanes.items() if one.tenant in shares
                ]
                found = await self._steps.claim(worker_id, self.now, lease, lanes)
                self._learn(found, shares, weights)
                started += found
        started.sort(key=_place)
        return [job for job, _ in started]

    def _learn(
        self, started: Sequence[tuple[Job, int]], shares: Mapping[str, int], weights: Mapping[str, float]
    ) -> None:
        """From what was found: where nothing is left, and where the next scan begins."""
        starts: dict[str, int] = {}
        last: dict[tuple[str, str], tuple[Job, int]] = {}
        for one in sorted(started, key=_place):
            job = one[0]
            last[job.queue, job.tenant] = one
            starts[job.tenant] = starts.get(job.tenant, 0) + 1
        for (queue, tenant), one in last.items():
            lane, place = Lane(queue, tenant, ""), _place(one)
            self._lanes[lane] = max(place, self._lanes.get(lane, place))
        drained = {tenant for tenant, share in shares.items() if starts.get(tenant, 0) < share}
        self._turns.took({lane.tenant for lane in self._lanes}, starts, weights)
        self._lanes = {lane: floor for lane, floor in self._lanes.items() if lane.tenant not in drained}

    def _absorb(self) -> None:
        for lane, place in self._told.items():
            if lane.queue in self._queues:
                self._lower(self._lanes, lane, place)
        self._told.clear()

    def _lower(self, places: dict[Lane, Place], lane: Lane, place: Place) -> None:
        places[lane] = min(place, places.get(lane, place))

    @property
    def _is_apart(self) -> bool:
        """Whether only its own looks tell it of jobs: it does not listen, limits make that too little, or the time is a
        test's, which passes between two claims."""
        return self._listener is None or self._limited or self._clock is not None

    async def _keep_up(self) -> bool:
        """Sweep and look where it is time to, beside the claims if they can do without; whether it has looked now."""
        deaf = self._listener is None and self._clock is None
        if deaf and self._lanes and self._loop_time() >= max(self._look_at, self._listen_not_before):
            await self._listen()  # a busy worker does not come to `wait`
        looks = self._loop_time() >= self._look_at
        if not self._is_apart:
            if looks or self._sweep_is_due():
                self._catch_up(looks=looks)
            return False
        if self._sweep_is_due():
            await self._sweep()
        if looks:
            await self._look()
        return looks

    async def _look_for_once(self, *, again: bool) -> bool:
        """Look because nothing is known to wait, or wait for the look that runs; a notice may tell of a job sooner.

        Args:
            again: Only for what is due.

        Returns:
            Whether there may be something to claim.
        """
        if self._is_apart:
            await self._look()
            return True
        looking, deadline = self._catching_up, self._loop_time() + LOOK_SECONDS
        if looking is None or looking.done():
            looks = not again and self._loop_time() >= self._look_not_before
            if not looks and not self._sweep_is_due():
                return False
            looking = self._catch_up(looks=looks)
        while not looking.done() and not self._told and (left := deadline - self._loop_time()) > 0:
            notice = asyncio.ensure_future(self._wakeup.wait(left))
            await asyncio.wait({looking, notice}, return_when=asyncio.FIRST_COMPLETED)
            notice.cancel()
        if not looking.done():
            looking.add_done_callback(lambda _: self._wakeup.notify())
        return True

    def _catch_up(self, *, looks: bool) -> asyncio.Task[None]:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._caught_up(looks))
        return self._catching_up

    async def _caught_up(self, looks: bool) -> None:
        try:
            if self._sweep_is_due():
                await self._sweep()
            if looks:
                for lane, place in (await self._waiting_lanes()).items():
                    self._lower(self._told, lane, place)
        except SvcInfraError as error:  # claims meet the same outage, and tell the worker
            _log.warning("jobs.look_failed", exc_info=error)

    async def _look(self) -> None:
        self._told.clear()
        self._lanes = await self._waiting_lanes()

    async def _waiting_lanes(self) -> dict[Lane, Place]:
        started = self._loop_time()
        self._look_at = started + LOOK_SECONDS
        rows = await self._steps.lanes(self._queues)
        if started >= self._configured_until:
            self._configured = await self._steps.configured(self._queues)
            self._configured_until = started + LOOK_SECONDS
        took = self._loop_time() - started
        if took > SLOW_LOOK_SECONDS:
            self._look_at = self._look_not_before = started + max(LOOK_SECONDS, 20 * took)
        return {Lane(*row[:3]): (row["rank"], row["id"]) for row in rows if not self._is_paused(row["queue"])}

    def _is_paused(self, queue: str) -> bool:
        return queue in self._configured and self._configured[queue].paused

    def _sweep_is_due(self) -> bool:
        time = self._time()
        swept_lately = timedelta(0) <= time - self._swept_at < timedelta(seconds=SWEEP_SECONDS)
        return not swept_lately or (self._due is not None and self._due <= time)

    async def _sweep(self) -> None:
        time, queues = self._time(), self._queues
        since = time - self._swept_at
        fully = since < timedelta(0) or time - self._swept_fully_at >= FULL_SWEEP
        self._due = None  # what is told meanwhile counts
        moved, (now, due) = await self._steps.sweep(
            queues, self.now, _EVER if fully else since + LOOK_BACK, self._max_crashes
        )
        if self._clock is None:
            self._offset += now - self._time()
        if queues is not self._queues:
            self._due = now
        elif len(moved) >= SWEEP_LIMIT_JOBS:
            self._due = now  # there may be more
        else:
            self._swept_at = now
            if fully:
                self._swept_fully_at = now
            if due is not None:
                self._due = due if self._due is None else min(self._due, due)
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
            self._listener = await self._steps.connections.listen(CLAIMS, CHANNEL, self._heard, self._deaf)
        except (SvcInfraError, OSError, TimeoutError) as error:
            _log.warning("jobs.listen_failed", exc_info=error)
        return self._listener is not None

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


def _place(started: tuple[Job, int]) -> Place:
    return started[1], started[0].id
