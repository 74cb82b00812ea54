"""What a flow and its steps are, as they are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from svc_infra.jobs.job import Job
from svc_infra.obs import context

FLOW_ID = "flow_id"
"""The key under which a step's job carries the id of its flow."""


class FlowState(StrEnum):
    """Where a flow is; all but the first are terminal."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """Where a step is."""

    WAITING = "waiting"  # for the steps before it; a callback: for the end of its flow
    ENQUEUED = "enqueued"  # its job is stored: it waits for a worker, runs, or will be tried again
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    IGNORED = "ignored"  # failed, and the flow goes on
    SKIPPED = "skipped"  # the flow failed before it could start
    CANCELLED = "cancelled"


class Role(StrEnum):
    """What a step is for."""

    STEP = "step"
    ON_SUCCESS = "on_success"
    ON_FAILURE = "on_failure"
    ON_COMPLETE = "on_complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow as it was last seen.

    Attributes:
        id: UUIDv7, or what the caller chose.
        kind: "workflow", "chain" or "batch".
        run: Goes up when a failed flow is retried.
        total: Its steps; callbacks do not count, here and below.
        active: Steps whose jobs are stored and have not ended.
        succeeded: Steps that have.
        failed: Steps whose failure fails the flow.
        ignored: Steps that failed while the flow goes on.
        cancel_requested: Somebody has cancelled it; it ends when its running steps have.
    """

    id: str
    kind: str
    name: str
    state: FlowState
    run: int
    total: int
    active: int
    succeeded: int
    failed: int
    ignored: int
    cancel_requested: bool
    tenant: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStep:
    """A step of a flow as it was last seen.

    Attributes:
        after: The steps that end before it starts.
        job_id: Its job; None before it is stored.
        on_failure: "fail" or "ignore".
        result: What its task returned.
    """

    name: str
    role: Role
    task: str
    state: StepState
    after: tuple[str, ...]
    on_failure: str
    job_id: str | None
    result: Any
    error: str | None
    enqueued_at: datetime | None
    finished_at: datetime | None


class Outcome(NamedTuple):
    """How a step's job ended."""

    state: StepState
    result: str | None = None
    error: str | None = None


class StepJob(NamedTuple):
    """Whose job a job is, as its id says."""

    flow_id: str
    step: str
    run: int

    @property
    def id(self) -> str:
        """The job's id: one for each step and run, so that storing it twice stores it once."""
        return f"flow:{self.flow_id}:{self.step}:{self.run}"


def step_of(job: Job) -> StepJob | None:
    """The step that a job runs for; None for a job of no flow."""
    flow_id = job.context.get(FLOW_ID)
    if flow_id is None or not job.id.startswith(prefix := f"flow:{flow_id}:"):
        return None
    step, _, run = job.id.removeprefix(prefix).rpartition(":")
    return StepJob(flow_id, step, int(run)) if step and run.isdecimal() else None


class FlowContext(context.Context):
    """What the jobs of a flow carry: whose it is, and its id."""

    __slots__ = ("flow_id",)

    def __init__(self, carried: Mapping[str, str], flow_id: str) -> None:
        known = {field.name for field in fields(context.Context)}  # of a newer release it may hold more
        super().__init__(**{name: value for name, value in carried.items() if name in known})  # type: ignore[arg-type]
        self.flow_id = flow_id

    def carried(self) -> dict[str, str]:
        """With the id that `JobContext.flow_id` gives."""
        return {**super().carried(), FLOW_ID: self.flow_id}
