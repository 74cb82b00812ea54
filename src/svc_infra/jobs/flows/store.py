"""The rows of flows and steps, and what is read from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too

from svc_infra.jobs.flows.flow import Flow, FlowState, FlowStep, Role, StepJob, StepState
from svc_infra.jobs.flows.models import svc_flow_steps, svc_flows
from svc_infra.jobs.flows.plan import Step
from svc_infra.jobs.job import read_result

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

f, s = svc_flows.c, svc_flow_steps.c
_INSERT_FLOW = insert(svc_flows).on_conflict_do_nothing().returning(f.id)
_INSERT_STEPS = insert(svc_flow_steps).on_conflict_do_nothing().returning(s.name)
_UPDATE_STEP = sa.update(svc_flow_steps).where(s.flow_id == sa.bindparam("of"), s.name == sa.bindparam("called"))


@dataclass(slots=True)
class Record:
    """A flow's row, while its transaction has it locked."""

    id: str
    kind: str
    name: str
    state: str
    run: int
    total: int
    active: int
    succeeded: int
    failed: int
    ignored: int
    cancel_requested: bool
    context: str
    tenant: str
    created_at: datetime
    finished_at: datetime | None

    @property
    def is_stopping(self) -> bool:
        """Whether no further step may start."""
        return self.cancel_requested or self.failed > 0


async def insert_flow(session: AsyncSession, record: Record) -> bool:
    """Store a flow; False when its id is taken."""
    return bool((await session.execute(_INSERT_FLOW, _values(record))).all())


async def insert_steps(session: AsyncSession, flow_id: str, steps: Sequence[Step], first: int) -> list[str]:
    """Store steps that wait; the names of those that were not there yet, in their order.

    Args:
        first: The position of the first one.
    """
    dependents: dict[str, list[str]] = {}
    for step in steps:
        for name in step.after:
            dependents.setdefault(name, []).append(step.name)
    rows = [
        {
            "flow_id": flow_id,
            "name": step.name,
            "position": first + number,
            "role": step.role,
            "task": step.task,
            "payload": orjson.dumps(step.payload).decode(),
            "options": step.options,
            "inputs": orjson.dumps(step.inputs).decode(),
            "after": orjson.dumps(step.after).decode(),
            "dependents": orjson.dumps(dependents.get(step.name, [])).decode(),
            "on_failure": step.on_failure,
            "state": StepState.WAITING,
            "blockers": len(step.after),
            "run": 0,
        }
        for number, step in enumerate(steps)
    ]
    if not rows:
        return []
    stored = set(await session.scalars(_INSERT_STEPS, rows))
    return [step.name for step in steps if step.name in stored]


async def locked(session: AsyncSession, flow_id: str) -> Record | None:
    """A flow, which no other transaction changes before this one has ended."""
    rows = await session.execute(sa.select(svc_flows).where(f.id == flow_id).with_for_update())
    row = rows.one_or_none()
    return None if row is None else Record(**row._mapping)


async def write_flow(session: AsyncSession, record: Record) -> None:
    """Store what has changed of a flow."""
    await session.execute(sa.update(svc_flows).where(f.id == record.id).values(_values(record)))


async def write_step(session: AsyncSession, flow_id: str, name: str, **values: Any) -> None:
    """Change a step."""
    await session.execute(_UPDATE_STEP.values(values), {"of": flow_id, "called": name})


async def write_steps(session: AsyncSession, flow_id: str, which: sa.ColumnElement[bool], **values: Any) -> None:
    """Change several steps alike."""
    await session.execute(sa.update(svc_flow_steps).where(s.flow_id == flow_id, which).values(values))


async def reset_steps(session: AsyncSession, flow_id: str, blockers: Mapping[str, int]) -> None:
    """Let these steps wait again, each for so many others."""
    cleared = {"state": StepState.WAITING, "result": None, "error": None, "finished_at": None}
    statement = _UPDATE_STEP.values(blockers=sa.bindparam("left"), **cleared)
    rows = [{"of": flow_id, "called": name, "left": left} for name, left in blockers.items()]
    await (await session.connection()).execute(statement, rows)


async def delete_first_steps(session: AsyncSession, flow_id: str, limit: int) -> bool:
    """Delete so many steps of a flow, by their names; False, and nothing is deleted, when it has no more than that."""
    names = sa.select(s.name).where(s.flow_id == flow_id).order_by(s.name).offset(limit - 1).limit(2)
    found = (await session.scalars(names)).all()
    if len(found) < 2:
        return False
    await session.execute(sa.delete(svc_flow_steps).where(s.flow_id == flow_id, s.name <= found[0]))
    return True


async def step_row(session: AsyncSession, job: StepJob) -> Any:
    """The row of the step that a job is or was for; None when it is gone."""
    rows = await session.execute(sa.select(svc_flow_steps).where(s.flow_id == job.flow_id, s.name == job.step))
    return rows.one_or_none()


async def step_rows(session: AsyncSession, flow_id: str, names: Collection[str]) -> Sequence[Any]:
    """The rows of these steps, in their order."""
    found = sa.select(svc_flow_steps).where(s.flow_id == flow_id, s.name.in_(names))
    return (await session.execute(found.order_by(s.position))).all()


async def results(session: AsyncSession, flow_id: str, names: Iterable[str]) -> dict[str, Any]:
    """What these steps returned; None for those that returned nothing or failed."""
    found = sa.select(s.name, s.result).where(s.flow_id == flow_id, s.name.in_(set(names)))
    return {row.name: read_result(row.result) for row in await session.execute(found)}


async def unblock(session: AsyncSession, flow_id: str, names: Collection[str]) -> list[str]:
    """A step before each of these has ended; those that wait for nothing more."""
    fewer = (
        sa.update(svc_flow_steps)
        .where(s.flow_id == flow_id, s.name.in_(names), s.state == StepState.WAITING)
        .values(blockers=s.blockers - 1)
        .returning(s.name, s.blockers)
    )
    return [row.name for row in await session.execute(fewer) if row.blockers == 0]


def flow_of(row: Any) -> Flow:
    """A flow as others see it."""
    values = {field.name: getattr(row, field.name) for field in fields(Flow)}
    return Flow(**{**values, "state": FlowState(row.state)})


def flow_step_of(row: Any) -> FlowStep:
    """A step as others see it."""
    return FlowStep(
        name=row.name,
        role=Role(row.role),
        task=row.task,
        state=StepState(row.state),
        after=tuple(orjson.loads(row.after)),
        on_failure=row.on_failure,
        job_id=StepJob(row.flow_id, row.name, row.run).id if row.run else None,
        result=read_result(row.result),
        error=row.error,
        enqueued_at=row.enqueued_at,
        finished_at=row.finished_at,
    )


def _values(record: Record) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(Record)}
