"""Hears how the jobs of flows end: from the workers that run them, and from the queue where no worker could tell."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import sqlalchemy as sa

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConflictError, NotFoundError, ValidationError
from svc_infra.jobs.context import JobContext
from svc_infra.jobs.flows import store
from svc_infra.jobs.flows.advance import SILENT_SECONDS, Advance
from svc_infra.jobs.flows.flow import Outcome, Role, StepJob, StepState, step_of
from svc_infra.jobs.flows.models import svc_flow_steps, svc_flows
from svc_infra.jobs.flows.store import f, s
from svc_infra.jobs.job import Job, JobState, error_text, read_result, result_text
from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.jobs.retry import Cancel
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.obs.metrics import metrics
from svc_infra.types import Clock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

SWEEP_LIMIT_STEPS = 1000
SILENT_LIMIT_SECONDS = 300.0
"""The longest time between two questions what became of a step's job; the first comes after `SILENT_SECONDS`."""
MISSING_SECONDS = 300.0
"""How long a step's job may be on its way to a queue outside of the database before it is stored again."""

_log = logging.getLogger(__name__)


class Earlier(NamedTuple):
    """A step has succeeded already, by an attempt whose queue was not told."""

    result: Any


class Ends:
    """Advances flows by the ends of their jobs, each end once; the arguments are those of `Flows`."""

    def __init__(self, queue: JobQueue, db: AsyncDatabase, clock: Clock) -> None:
        self._queue = queue
        self._jobs = cast(JobStore, queue)  # every backend is both
        self._db = db
        self._clock = clock
        self._together = isinstance(queue, SqlJobQueue)

    async def begin(self, job: Job) -> Earlier | None:
        """A worker is about to run this job of a flow.

        Returns:
            What the step returned, when it has succeeded already: the job is done.

        Raises:
            Cancel: The flow no longer waits for it.
        """
        step = _step(job)
        found = sa.select(s.state, s.run, s.role, s.result, f.cancel_requested).join(svc_flows, f.id == s.flow_id)
        async with self._db.session(read_only=True) as session:
            rows = await session.execute(found.where(s.flow_id == step.flow_id, s.name == step.step))
            row = rows.one_or_none()
        if row is None or row.run != step.run:
            raise Cancel("The flow is gone, or has given this job up.")
        if row.state == StepState.SUCCEEDED:
            return Earlier(read_result(row.result))
        if row.role == Role.STEP and (row.state != StepState.ENQUEUED or row.cancel_requested):
            raise Cancel("The flow no longer waits for this job; `flows retry` begins it again.")
        return None

    async def finish(self, attempt: JobContext, result: Any, *, session: AsyncSession | None = None) -> bool:
        """An attempt at a job of a flow has succeeded, and the queue has not been told.

        Args:
            session: In this unit of work, with which the queue will be told where it can be; nothing happens when
                that is of another database.

        Returns:
            Whether the queue has been told with it.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
            ValidationError: The result is no JSON or is larger than 1 MiB.
        """
        job, outcome = attempt.job, Outcome(StepState.SUCCEEDED, result_text(result))
        if session is not None and session.get_bind().engine.url != self._db.engine.url:
            return False
        if not self._together:  # refuses an attempt that has lost its job; `ack` would too late
            done, total = attempt.reported or (job.progress_done, job.progress_total)
            await self._queue.progress(job, done=done, total=total)
        if session is not None:
            await self._end(session, _step(job), outcome)
            return False
        async with self._db.session() as own:
            await self._end(own, _step(job), outcome)
            if self._together:
                await self._queue.ack(job, result=result, session=own)
        return self._together

    async def ended(self, job: Job, state: JobState, error: str) -> None:
        """A job of a flow has ended on its queue without success."""
        async with self._db.session() as session:
            await self._end(session, _step(job), _outcome(state, None, error_text(error)))

    async def sweep(self, *, limit: int = SWEEP_LIMIT_STEPS) -> int:
        """Ask what became of the jobs of steps that nothing was heard of, and go on accordingly.

        Any number of processes may: each step is asked about by one of them.

        Returns:
            How many were asked about.
        """
        now = self._clock.now()
        silent = (s.state == StepState.ENQUEUED) & (s.look_at <= now)
        found = sa.select(s.flow_id, s.name, s.run, s.role, s.enqueued_at, f.cancel_requested)
        found = found.join(svc_flows, f.id == s.flow_id).where(silent).order_by(s.look_at).limit(limit)
        async with self._db.session() as session:
            rows = (await session.execute(found.with_for_update(skip_locked=True, of=svc_flow_steps))).all()
            for row in rows:
                again = min(max((now - row.enqueued_at).total_seconds() / 2, SILENT_SECONDS), SILENT_LIMIT_SECONDS)
                await store.write_step(session, row.flow_id, row.name, look_at=now + timedelta(seconds=again))
        for row in rows:
            step = StepJob(row.flow_id, row.name, row.run)
            job = await self._jobs.get(step.id)
            if job is None or job.finished_at is not None:
                await self._look(step, job)
            elif row.cancel_requested and row.role == Role.STEP:
                await self.cancel(step)
        return len(rows)

    async def _look(self, step: StepJob, job: Job | None) -> None:
        """Go on with what a step's job has become: it has ended, or is not there."""
        async with self._db.session() as session:
            record = await store.locked(session, step.flow_id)
            row = await store.step_row(session, step)
            if record is None or row is None or row.state != StepState.ENQUEUED or row.run != step.run:
                return
            change = Advance(session, record, self._queue, self._clock.now())
            if job is not None:
                await change.end(step, _outcome(job.state, result_text(job.result), job.last_error))
            elif self._clock.now() - row.enqueued_at < timedelta(seconds=MISSING_SECONDS):
                return
            elif record.cancel_requested and row.role == Role.STEP:
                await change.end(step, Outcome(StepState.CANCELLED))
            else:
                metrics.increment("jobs.flow_jobs_missing")
                _log.warning("jobs.flow_job_missing", extra={"flow": step.flow_id, "step": step.step})
                await store.write_step(session, step.flow_id, step.step, enqueued_at=self._clock.now())
                await change.store([row])
            await change.write()

    async def cancel(self, step: StepJob) -> None:
        """Cancel a step's job; should nobody come to it, `sweep` does."""
        with suppress(ConflictError, NotFoundError):  # it has ended, or is on its way to the queue: `begin` stops it
            await self._jobs.cancel(step.id)
        job = await self._jobs.get(step.id)
        if job is not None and job.finished_at is not None:
            await self._look(step, job)

    async def _end(self, session: AsyncSession, step: StepJob, outcome: Outcome) -> None:
        record = await store.locked(session, step.flow_id)
        if record is None:
            return  # purged: nobody waits for this
        change = Advance(session, record, self._queue, self._clock.now())
        if await change.end(step, outcome):
            await change.write()


def _step(job: Job) -> StepJob:
    if (step := step_of(job)) is None:
        raise ValidationError(f"Job {job.id} is no step of a flow.")
    return step


def _outcome(state: JobState, result: str | None, error: str | None) -> Outcome:
    match state:
        case JobState.SUCCEEDED:
            return Outcome(StepState.SUCCEEDED, result)
        case JobState.CANCELLED:
            return Outcome(StepState.CANCELLED, error=error)
        case _:
            return Outcome(StepState.FAILED, error=error)
