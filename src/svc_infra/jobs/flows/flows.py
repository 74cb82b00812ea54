"""Starts flows, hears of the ends of their jobs, and looks after them."""

from __future__ import annotations

import asyncio
import builtins
import logging
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING

import orjson
import sqlalchemy as sa

from svc_infra.db import AsyncDatabase
from svc_infra.errors import (
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    ValidationError,
)
from svc_infra.jobs.flows import store
from svc_infra.jobs.flows.advance import Advance
from svc_infra.jobs.flows.batch import Batch
from svc_infra.jobs.flows.ends import Ends
from svc_infra.jobs.flows.flow import Flow, FlowState, FlowStep, Role, StepJob, StepState
from svc_infra.jobs.flows.models import svc_flow_steps, svc_flows
from svc_infra.jobs.flows.plan import FLOW_ID_LIMIT_CHARS, Plan
from svc_infra.jobs.flows.store import Record, f, s
from svc_infra.jobs.job import check_name, check_number
from svc_infra.jobs.queue import JobQueue
from svc_infra.obs import context
from svc_infra.types import Clock, SystemClock, new_id
from svc_infra.wiring import current_wiring

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

BATCH_LIMIT_JOBS = 1_000_000
"""How many jobs one batch has at most, with all that is added while it runs."""
LIST_LIMIT = 1000
PURGE_LIMIT_FLOWS = 1000
PURGE_LIMIT_STEPS = 10_000
"""About how many steps `purge` deletes in one transaction, which on SQLite keeps everybody else from writing."""
LONGEST_LOOK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Flows:
    """Keeps flows in a database and their jobs on a queue; every change of a flow is one transaction.

    What a change makes due is stored in that same transaction, as jobs with ids of their own for each step. With a
    SQL queue a step's end and its job's are one transaction too; with another the step's comes first, and an attempt
    that dies in between is not repeated. What nobody could tell, such as that a job has killed its last worker, is
    found by `Ends.sweep`.

    Args:
        queue: Where the jobs go: it must be able to store them in the database's sessions.
        db: The database; `migrate.upgrade` has made its tables. A SQL queue's own.
        clock: Where the time comes from.

    Attributes:
        ends: What workers tell of the ends of steps.
    """

    def __init__(self, queue: JobQueue, db: AsyncDatabase, *, clock: Clock | None = None) -> None:
        self._queue = queue
        self._db = db
        self._clock = clock or SystemClock()
        self.ends = Ends(queue, db, self._clock)

    async def start(self, plan: Plan, *, flow_id: str | None = None, session: AsyncSession | None = None) -> str:
        """Store a flow; see `Plan.start`."""
        flow_id = str(new_id()) if flow_id is None else check_name("flow's id", flow_id)
        if len(flow_id) > FLOW_ID_LIMIT_CHARS:
            raise ValidationError(f"A flow's id has at most {FLOW_ID_LIMIT_CHARS} characters.")
        if session is None:
            async with self._db.session() as own:
                return await self.start(plan, flow_id=flow_id, session=own)
        carried = context.current().carried()
        record = Record(
            id=flow_id,
            kind=plan.kind,
            name=plan.name,
            state=FlowState.RUNNING,
            run=1,
            total=len(plan.steps),
            active=0,
            succeeded=0,
            failed=0,
            ignored=0,
            cancel_requested=False,
            context=orjson.dumps(carried).decode(),
            tenant=carried.get("tenant_id", ""),
            created_at=self._clock.now(),
            finished_at=None,
        )
        if await store.insert_flow(session, record):
            steps = list(plan.steps.values())
            await store.insert_steps(session, flow_id, [*steps, *plan.callbacks.values()], 0)
            change = self._change(session, record)
            await change.start([step.name for step in steps if not step.after])
            await change.write()
        return flow_id

    async def extend(self, flow_id: str, more: Batch, *, session: AsyncSession | None = None) -> int:
        """Add jobs to a batch that has not ended, as one of its own jobs can.

        Args:
            more: The jobs; a name that the batch has already changes nothing.
            session: Add them in this unit of work. Until that ends, no other job of the batch does.

        Returns:
            How many are new.

        Raises:
            NotFoundError: There is no such flow.
            ConflictError: It is no batch, has ended, or is cancelled.
            ValidationError: The batch has more than 1,000,000 jobs.
            ConfigurationError: `more` has callbacks.
        """
        if more.callbacks:
            raise ConfigurationError("What is added to a batch has no callbacks: give them to the batch itself.")
        if session is None:
            async with self._db.session() as own:
                return await self.extend(flow_id, more, session=own)
        record = await self._locked(session, flow_id)
        if record.kind != Batch.kind or record.state != FlowState.RUNNING or record.cancel_requested:
            raise ConflictError(f"Nothing can be added to a {record.kind} that is {_told(record)}.")
        if record.total + len(more.steps) > BATCH_LIMIT_JOBS:
            raise ValidationError(f"A batch has at most {BATCH_LIMIT_JOBS:,} jobs.")
        added = await store.insert_steps(session, flow_id, list(more.steps.values()), record.total)
        record.total += len(added)
        change = self._change(session, record)
        await change.start(added)
        await change.write()
        return len(added)

    async def get(self, flow_id: str) -> Flow | None:
        """The flow, or None when it was never started or has been purged."""
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(sa.select(svc_flows).where(f.id == flow_id))).one_or_none()
        return None if row is None else store.flow_of(row)

    async def list(
        self,
        *,
        state: FlowState | None = None,
        name: str | None = None,
        tenant: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> builtins.list[Flow]:
        """The newest flows, newest first.

        Args:
            before: The id of a flow: only those that are older than it.
            limit: At most 1,000.
        """
        check_number("list limit", limit, 1, LIST_LIMIT)
        equal = {f.state: state, f.name: name, f.tenant: tenant}
        found = sa.select(svc_flows).where(*(column == value for column, value in equal.items() if value is not None))
        if before is not None:
            last = svc_flows.alias()
            cursor = sa.select(last.c.created_at, last.c.id).where(last.c.id == before).scalar_subquery()
            found = found.where(sa.tuple_(f.created_at, f.id) < cursor)
        async with self._db.session(read_only=True) as session:
            rows = await session.execute(found.order_by(f.created_at.desc(), f.id.desc()).limit(limit))
            return [store.flow_of(row) for row in rows]

    async def steps(
        self, flow_id: str, *, state: StepState | None = None, limit: int = LIST_LIMIT, skip: int = 0
    ) -> builtins.list[FlowStep]:
        """A flow's steps and callbacks, in the order in which they were added, each with what it waits for.

        Args:
            state: Only those in this state.
            limit: At most 1,000, after the first `skip`.
        """
        check_number("list limit", limit, 1, LIST_LIMIT)
        found = sa.select(svc_flow_steps).where(s.flow_id == flow_id)
        if state is not None:
            found = found.where(s.state == state)
        async with self._db.session(read_only=True) as session:
            rows = await session.execute(found.order_by(s.position, s.name).limit(limit).offset(skip))
            return [store.flow_step_of(row) for row in rows]

    async def wait_for(self, flow_id: str, timeout_seconds: float) -> Flow:
        """The flow once it has ended.

        Raises:
            NotFoundError: There is no such flow.
            DeadlineExceededError: It takes longer than this.
        """
        pause_seconds = 0.01
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    if (flow := await self.get(flow_id)) is None:
                        raise NotFoundError("Flow", flow_id)
                    if flow.finished_at is not None:
                        return flow
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, LONGEST_LOOK_SECONDS)
        except TimeoutError as error:
            raise DeadlineExceededError(f"The flow has not ended within {timeout_seconds:g} s.") from error

    async def cancel(self, flow_id: str) -> None:
        """Let no further step start, and cancel the jobs of those that have: running ones are asked to end.

        Raises:
            NotFoundError: There is no such flow.
            ConflictError: It has ended.
        """
        async with self._db.session() as session:
            record = await self._locked(session, flow_id)
            if record.state != FlowState.RUNNING:
                raise ConflictError(f"The flow is {_told(record)}.")
            record.cancel_requested = True
            waits = (s.state == StepState.WAITING) & (s.role == Role.STEP)
            await store.write_steps(session, flow_id, waits, state=StepState.CANCELLED)
            await self._change(session, record).write()
            active = (s.flow_id == flow_id) & (s.state == StepState.ENQUEUED) & (s.role == Role.STEP)
            rows = (await session.execute(sa.select(s.name, s.run).where(active))).all()
        for row in rows:  # should this stop half-way, the sweep does the rest
            await self.ends.cancel(StepJob(flow_id, row.name, row.run))

    async def retry(self, flow_id: str) -> None:
        """Let a failed or cancelled flow go on: what has not succeeded runs again, what waits for it after it.

        Raises:
            NotFoundError: There is no such flow.
            ConflictError: It runs, or has succeeded.
        """
        async with self._db.session() as session:
            record = await self._locked(session, flow_id)
            if record.state not in (FlowState.FAILED, FlowState.CANCELLED):
                raise ConflictError(f"The flow is {_told(record)}.")
            found = sa.select(s.name, s.role, s.state, s.after).where(s.flow_id == flow_id)
            rows = (await session.execute(found)).all()
            done = {row.name for row in rows if row.state in (StepState.SUCCEEDED, StepState.IGNORED)}
            again = [row for row in rows if row.role != Role.STEP or row.name not in done]
            blockers = {row.name: len(set(orjson.loads(row.after)) - done) for row in again}
            await store.reset_steps(session, flow_id, blockers)
            record.run += 1
            record.state, record.finished_at, record.failed, record.cancel_requested = FlowState.RUNNING, None, 0, False
            change = self._change(session, record)
            await change.start([row.name for row in again if row.role == Role.STEP and not blockers[row.name]])
            await change.write()

    async def purge(self, *, older_than_seconds: float, limit: int = PURGE_LIMIT_FLOWS, failed: bool = False) -> int:
        """Delete up to `limit` flows that ended longer ago than this, in transactions of about 10,000 steps each.

        Args:
            failed: Those that failed, which are kept otherwise, instead of the others.

        Returns:
            How many.
        """
        before = self._clock.now() - timedelta(seconds=older_than_seconds)
        ended = (f.state == FlowState.FAILED) if failed else (f.state != FlowState.FAILED)
        old = sa.select(f.id, f.total).where(f.finished_at < before, ended).order_by(f.finished_at)
        purged = 0
        while purged < limit:
            async with self._db.session() as session:
                flows = (await session.execute(old.limit(limit - purged).with_for_update(skip_locked=True))).all()
                if not flows:
                    break
                sums = accumulate(row.total for row in flows)
                ids = [row.id for row, steps in zip(flows, sums, strict=True) if steps <= PURGE_LIMIT_STEPS]
                if not ids and await store.delete_first_steps(session, flows[0].id, PURGE_LIMIT_STEPS):
                    continue
                ids = ids or [flows[0].id]
                await session.execute(sa.delete(svc_flow_steps).where(s.flow_id.in_(ids)))
                await session.execute(sa.delete(svc_flows).where(f.id.in_(ids)))
                purged += len(ids)
        return purged

    async def _locked(self, session: AsyncSession, flow_id: str) -> Record:
        if (record := await store.locked(session, flow_id)) is None:
            raise NotFoundError("Flow", flow_id)
        return record

    def _change(self, session: AsyncSession, record: Record) -> Advance:
        return Advance(session, record, self._queue, self._clock.now())


def current_flows(name: str) -> Flows:
    """The flows of the app whose request, job or script runs here.

    Raises:
        ConfigurationError: There is no app, or it has none.
    """
    wiring = current_wiring()
    if wiring is None or not wiring.has(Flows):
        raise ConfigurationError(
            f"Flow {name} was started where no app with flows is active: call add_flows(app), and start it in a "
            "request, in a job, in a `with wiring_of(app).active():` block, or with `on=flows`."
        )
    return wiring.get(Flows)


def _told(record: Record) -> str:
    return "being cancelled" if record.cancel_requested and record.finished_at is None else record.state
