"""What the end of a step means for its flow: worked out in one transaction that has the flow locked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from svc_infra.errors import ValidationError
from svc_infra.jobs.flows.flow import FlowContext, FlowState, Outcome, Role, StepJob, StepState
from svc_infra.jobs.flows.plan import request_of
from svc_infra.jobs.flows.store import (
    Record,
    results,
    s,
    step_row,
    step_rows,
    unblock,
    write_flow,
    write_step,
    write_steps,
)
from svc_infra.jobs.job import JobRequest, error_text, payload_text
from svc_infra.jobs.queue import JobQueue
from svc_infra.obs import context

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

SILENT_SECONDS = 30.0
"""How long a step's job is left alone before its queue is asked what became of it."""


class Advance:
    """One change of a flow, in a transaction that has it locked; `write` comes last.

    Args:
        session: The transaction.
        flow: The flow, as `store.locked` gave it.
        queue: Where the jobs of steps go, in the same transaction.
        now: The time.
    """

    def __init__(self, session: AsyncSession, flow: Record, queue: JobQueue, now: datetime) -> None:
        self._session = session
        self._flow = flow
        self._queue = queue
        self._now = now

    async def end(self, job: StepJob, outcome: Outcome) -> bool:
        """A step's job has ended; False when that is known already, or the flow has given up that job."""
        row = await step_row(self._session, job)
        if row is None or row.run != job.run:
            return False
        is_step = row.role == Role.STEP
        if row.state != StepState.ENQUEUED and (is_step or row.state == StepState.SUCCEEDED):
            return False  # a callback may be replayed from the dead letter: nothing depends on it
        if is_step:
            await self._ended(row, outcome)
        else:
            await self._record(row, outcome.state, outcome)
        return True

    async def start(self, names: Collection[str]) -> None:
        """Store the jobs of steps that wait for nothing more."""
        flow = self._flow
        rows = await step_rows(self._session, flow.id, names) if names else []
        if not rows:
            return
        steps = [row for row in rows if row.role == Role.STEP]
        flow.active += len(steps)
        await write_steps(
            self._session,
            flow.id,
            s.name.in_(names),
            state=StepState.ENQUEUED,
            run=flow.run,
            enqueued_at=self._now,
            look_at=self._now + timedelta(seconds=SILENT_SECONDS),
        )
        for row, error in await self.store(rows):
            await self._ended(row, Outcome(StepState.FAILED, error=error_text(f"ValidationError: {error.detail}")))

    async def store(self, rows: Sequence[Any]) -> list[tuple[Any, ValidationError]]:
        """Store the jobs of these steps in their flow's run; those that have none because it would not be valid."""
        flow = self._flow
        inputs = {row.name: orjson.loads(row.inputs) for row in rows}
        needed = {name for one in inputs.values() for name in _names(one)}
        known = await results(self._session, flow.id, needed) if needed else {}
        requests: list[JobRequest] = []
        unfit: list[tuple[Any, ValidationError]] = []
        for row in rows:
            payload = {**orjson.loads(row.payload), **_given(inputs[row.name], known)}
            try:
                payload_text(payload)
            except ValidationError as error:
                unfit.append((row, error))
            else:
                requests.append(request_of(StepJob(flow.id, row.name, flow.run), row.task, payload, row.options))
        token = context.enter(FlowContext(orjson.loads(flow.context), flow.id))
        try:
            await self._queue.enqueue_many(requests, session=self._session)
        finally:
            context.leave(token)
        return unfit

    async def write(self) -> None:
        """End the flow when nothing of it is left to do, and store it."""
        flow = self._flow
        if flow.active == 0 and flow.state == FlowState.RUNNING:
            flow.finished_at = self._now
            called = [Role.ON_COMPLETE]
            if flow.succeeded + flow.ignored == flow.total:
                flow.state = FlowState.SUCCEEDED
                called.append(Role.ON_SUCCESS)
            else:
                flow.state = FlowState.CANCELLED if flow.cancel_requested else FlowState.FAILED
            await self.start(called)
        await write_flow(self._session, flow)

    async def _ended(self, row: Any, outcome: Outcome) -> None:
        flow, state = self._flow, outcome.state
        flow.active -= 1
        was_stopping, had_failed = flow.is_stopping, flow.failed > 0
        if state is StepState.SUCCEEDED:
            flow.succeeded += 1
        elif row.on_failure == "ignore" and not (state is StepState.CANCELLED and flow.cancel_requested):
            state = StepState.IGNORED
            flow.ignored += 1
        elif not (state is StepState.CANCELLED and flow.cancel_requested):
            flow.failed += 1
        await self._record(row, state, outcome)
        if flow.failed and not had_failed:
            if not was_stopping:
                waits = (s.state == StepState.WAITING) & (s.role == Role.STEP)
                await write_steps(self._session, flow.id, waits, state=StepState.SKIPPED)
            await self.start([Role.ON_FAILURE])
        if not flow.is_stopping and (dependents := orjson.loads(row.dependents)):
            await self.start(await unblock(self._session, flow.id, dependents))

    async def _record(self, row: Any, state: StepState, outcome: Outcome) -> None:
        values = {"result": outcome.result, "error": outcome.error, "finished_at": self._now}
        await write_step(self._session, row.flow_id, row.name, state=state, **values)


def _names(inputs: dict[str, str | list[str]]) -> set[str]:
    """The steps whose results these are."""
    return {name for used in inputs.values() for name in ([used] if isinstance(used, str) else used)}


def _given(inputs: dict[str, str | list[str]], known: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are results."""
    return {
        parameter: known.get(used) if isinstance(used, str) else [known.get(name) for name in used]
        for parameter, used in inputs.items()
    }
