"""Stores the jobs of the ticks that are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from svc_infra.errors import ConflictError, NotFoundError
from svc_infra.jobs.job import JobState
from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.schedules.decision import CLOCK_STEP, Decision, decide
from svc_infra.jobs.schedules.schedule import Schedule
from svc_infra.jobs.schedules.schedules import CATCH_UP_SECONDS, Schedules
from svc_infra.jobs.schedules.store import TICKS_KEPT_SECONDS, Look, Outcome, Record, ScheduleStore, Tick
from svc_infra.jobs.task import Task
from svc_infra.obs.metrics import metrics
from svc_infra.types import Clock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LONGEST_SLEEP_SECONDS = 1.0  # so that an edit, a step of the clock and a failed schedule are seen soon
PURGE_INTERVAL_SECONDS = 300.0

_log = logging.getLogger(__name__)


class Scheduler:
    """Stores a job for each tick that is due.

    Any number of schedulers may run, in any number of processes: a tick is decided once, and its job has an id of its
    own, so it is stored once. With a `SqlScheduleStore` the decision and the job are one transaction, and what nobody
    decided in time is known after every restart. Without one a scheduler knows what it saw itself: it looks back
    `catch_up_seconds` when it starts, and the queue must keep finished jobs for longer than that and clocks differ.

    Args:
        queue: Where the jobs go.
        schedules: What to run when; `add` adds more.
        tasks: What schedules that are put at run time may run, beside the tasks of these.
        store: Where schedules and ticks are kept; this process's memory when left out.
        clock: Where the time comes from when there is no store.
        catch_up_seconds: How far before a schedule is first seen a tick may lie that nobody has stored.

    Attributes:
        schedules: For looking after them while they run.

    Raises:
        ConfigurationError: Two schedules have one name.
        ValidationError: A payload does not fit its task.
    """

    def __init__(
        self,
        queue: JobQueue,
        schedules: Iterable[Schedule] = (),
        *,
        tasks: Iterable[Task[..., Any]] = (),
        store: ScheduleStore | None = None,
        clock: Clock | None = None,
        catch_up_seconds: float = CATCH_UP_SECONDS,
    ) -> None:
        self.schedules = Schedules(
            queue, schedules, tasks=tasks, store=store, clock=clock, catch_up_seconds=catch_up_seconds
        )
        self._jobs = cast(JobStore, queue)  # every backend is both
        self._following: dict[str, tuple[tuple[str, datetime], datetime | None]] = {}
        self._failing: set[str] = set()
        self._outage = Outage()
        self._purged_at: datetime | None = None
        self._stopping = asyncio.Event()

    def add(self, schedule: Schedule) -> None:
        """Run this schedule too; see the class for what it raises."""
        self.schedules.add(schedule)

    async def tick(self, now: datetime | None = None) -> list[str]:
        """Store what is due; a schedule that fails is logged, tried again by the next tick, and stops no other.

        Args:
            now: The time; the store's when left out.

        Returns:
            The ids of the jobs that were stored.

        Raises:
            UnavailableError, DeadlineExceededError: The store cannot be read.
        """
        return await self._tick(await self.schedules.look(now))

    async def run(self) -> None:
        """Tick whenever something is due, until `stop`."""
        while not self._stopping.is_set():
            try:
                look = await self.schedules.look()
                await self._tick(look)
                seconds = self._sleep_seconds(look)
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - a scheduler outlives every outage, which logs and counts itself
                seconds = self._outage.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    def stop(self) -> None:
        """Let `run` return; may be called again."""
        self._stopping.set()

    async def _tick(self, look: Look) -> list[str]:
        stored = []
        for record in look.records.values():
            if record.paused or not self.schedules.runs(record):
                continue
            try:
                stored += await self._decide(record, look.now)
            except Exception:  # noqa: BLE001 - one schedule's failure is logged and counted, and stops no other
                metrics.increment("jobs.schedule_failures", schedule=record.name)
                if record.name not in self._failing:
                    self._failing.add(record.name)
                    _log.exception("jobs.schedule_failed", extra={"schedule": record.name})
            else:
                self._failing.discard(record.name)
        await self._purge(look)
        return stored

    async def _decide(self, record: Record, now: datetime) -> list[str]:
        schedule = self.schedules.schedule(record)
        following = self._next(schedule, record)
        due = following is not None and following <= now
        if not due and record.waiting_due is None and record.decided_until <= now + CLOCK_STEP:
            return []
        decision = await self._decision(schedule, record, now)
        if decision is None:
            return []
        store_job = partial(self._store_job, schedule, now)
        recorded = await self.schedules.store.write(record, decision.after, decision.ticks, store_job)
        if recorded is None:  # another scheduler has decided meanwhile
            return []
        self._next(schedule, decision.after)
        for tick in recorded:
            _count(schedule, tick)
        return [tick.job_id for tick in recorded if tick.job_id is not None]

    async def _decision(self, schedule: Schedule, record: Record, now: datetime) -> Decision | None:
        if schedule.overlap == "allow" or record.job_id is None:
            return decide(schedule, record, now, busy=False)
        busy = await self._lives(record.job_id)
        decision = decide(schedule, record, now, busy=busy)
        waiting = record if decision is None else decision.after
        if not busy or waiting.waiting_due is None or schedule.overlap != "cancel_previous":
            return decision
        with suppress(ConflictError, NotFoundError):  # it has ended meanwhile, or is still on its way to the queue
            await self._jobs.cancel(record.job_id)
        return decide(schedule, record, now, busy=await self._lives(record.job_id))

    def _next(self, schedule: Schedule, record: Record) -> datetime | None:
        """The first tick that is not decided, worked out once for each."""
        known = (record.definition, record.decided_until)
        held = self._following.get(record.name)
        if held is None or held[0] != known:
            held = self._following[record.name] = known, schedule.times.following(record.decided_until)
        return held[1]

    async def _lives(self, job_id: str) -> bool:
        """Whether the schedule's last job waits or runs, or is on its way; one that is kept no longer has ended."""
        if (job := await self._jobs.get(job_id)) is None:
            if await self.schedules.store.is_under_way(job_id):
                return True
            job = await self._jobs.get(job_id)  # it may just have arrived
        return job is not None and job.state in (JobState.READY, JobState.RUNNING)

    async def _store_job(self, schedule: Schedule, now: datetime, tick: Tick, session: AsyncSession | None) -> None:
        delay_seconds = max(0.0, (schedule.starts(tick.due) - now).total_seconds())
        await self.schedules.store_job(
            schedule, tick.due, job_id=schedule.key(tick.due), delay_seconds=delay_seconds, session=session
        )

    async def _purge(self, look: Look) -> None:
        """Forget old ticks, and schedules put at run time that will never be due again; as often as it is worth it."""
        if self._purged_at is not None and abs((look.now - self._purged_at).total_seconds()) < PURGE_INTERVAL_SECONDS:
            return
        self._purged_at = look.now
        before = look.now - timedelta(seconds=TICKS_KEPT_SECONDS)
        await self.schedules.store.purge(before=before)
        for name, ((_, decided_until), following) in list(self._following.items()):
            record = look.records.get(name)
            if record is None:
                del self._following[name]
            elif following is None and record.declared is None and decided_until < before and not record.waiting_due:
                await self.schedules.store.delete(record)

    def _sleep_seconds(self, look: Look) -> float:
        moments = [moment for _, moment in self._following.values() if moment is not None and moment > look.now]
        return min([LONGEST_SLEEP_SECONDS, *((moment - look.now).total_seconds() for moment in moments)])


def _count(schedule: Schedule, tick: Tick) -> None:
    if tick.outcome is Outcome.STORED:
        metrics.increment("jobs.scheduled", schedule=schedule.name)
    elif tick.outcome is not Outcome.WAITING:
        metrics.increment("jobs.schedule_missed", schedule=schedule.name, reason=tick.outcome.value)
    if tick.reason is not None:
        metrics.increment("jobs.schedule_missed", tick.missed, schedule=schedule.name, reason=tick.reason.value)
        facts = {"schedule": schedule.name, "missed": tick.missed, "since": tick.missed_since, "reason": tick.reason}
        _log.warning("jobs.schedule_missed", extra=facts)
