"""What a flow is made of, before it is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import orjson

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs.flows.flow import Role, StepJob
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    JobRequest,
    Limit,
    check_name,
    new_jobs,
)
from svc_infra.jobs.task import Task, TaskCall

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from svc_infra.jobs.flows.flows import Flows

STEP_NAME_LIMIT_CHARS = 100
FLOW_ID_LIMIT_CHARS = 80
STORED_OPTIONS = (
    "queue",
    "priority",
    "max_attempts",
    "timeout_seconds",
    "backoff_seconds",
    "delay_seconds",
    "at",
    "limit",
)

Called: TypeAlias = Task[..., Any] | TaskCall
"""A task, or a task with options: `send_mail.options(queue="slow")`."""
OnFailure: TypeAlias = Literal["fail", "ignore"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step of a flow; as an argument of a later step it stands for its result.

    Attributes:
        inputs: The parameters that receive results, and whose: one step's, or a list of several steps'.
        options: How its job is stored, as JSON.
    """

    name: str
    role: Role
    task: str
    payload: Mapping[str, Any]
    options: str
    inputs: Mapping[str, str | list[str]]
    after: tuple[str, ...]
    on_failure: OnFailure


class Plan:
    """The steps of a flow that has not started; `Workflow`, `Chain` and `Batch` are its kinds.

    Args:
        name: Shown with the flow.

    Raises:
        ValidationError: The name is empty, longer than 200 characters, or has spaces in it.
    """

    kind: ClassVar[str]
    limit_steps: ClassVar[int] = 1000

    def __init__(self, name: str) -> None:
        self.name = check_name("flow's name", name)
        self.steps: dict[str, Step] = {}
        self.callbacks: dict[str, Step] = {}

    def on_success(self, call: Called, arguments: Mapping[str, Any] | None = None) -> None:
        """Run this task once all steps have succeeded, or failed where that is ignored."""
        self._call_back(Role.ON_SUCCESS, call, arguments)

    def on_failure(self, call: Called, arguments: Mapping[str, Any] | None = None) -> None:
        """Run this task as soon as a first step fails the flow."""
        self._call_back(Role.ON_FAILURE, call, arguments)

    def on_complete(self, call: Called, arguments: Mapping[str, Any] | None = None) -> None:
        """Run this task once the flow has ended, whatever became of it."""
        self._call_back(Role.ON_COMPLETE, call, arguments)

    async def start(
        self, *, flow_id: str | None = None, session: AsyncSession | None = None, on: Flows | None = None
    ) -> str:
        """Store the flow, and with it the jobs of the steps that wait for none.

        Args:
            flow_id: Chosen by the caller, up to 80 characters; starting the same id again changes nothing.
            session: Store it in this unit of work: gone with its rollback, begun with its commit.
            on: Where to; by default the flows of the app whose request, job or script runs here.

        Returns:
            The flow's id.

        Raises:
            ConfigurationError: No app is active here, or it has no flows: call `add_flows(app)`.
        """
        if on is None:
            from svc_infra.jobs.flows.flows import current_flows

            on = current_flows(self.name)
        return await on.start(self, flow_id=flow_id, session=session)

    def _call_back(self, role: Role, call: Called, arguments: Mapping[str, Any] | None) -> None:
        if role in self.callbacks:
            raise ConfigurationError(f"Flow {self.name} has its {role} already.")
        self.callbacks[role] = step = self._made(role, call, arguments or {}, role=role)
        if step.after:
            raise ConfigurationError(f"Flow {self.name}: {role} is given no step's result; it can ask for the flow's.")

    def _add(
        self,
        name: str,
        call: Called,
        arguments: Mapping[str, Any],
        *,
        after: Iterable[Step] = (),
        on_failure: OnFailure = "fail",
    ) -> Step:
        if len(self.steps) >= self.limit_steps:
            raise ValidationError(f"A {self.kind} has at most {self.limit_steps} steps.")
        if name in self.steps or name in set(Role):
            raise ConfigurationError(f"Flow {self.name} has a step {name} already.")
        step = self._made(name, call, arguments, after=after, on_failure=on_failure)
        self.steps[name] = step
        return step

    def _made(
        self,
        name: str,
        call: Called,
        arguments: Mapping[str, Any],
        *,
        after: Iterable[Step] = (),
        on_failure: OnFailure = "fail",
        role: Role = Role.STEP,
    ) -> Step:
        _check_step_name(name)
        if on_failure not in ("fail", "ignore"):
            raise ConfigurationError('A step\'s on_failure is "fail" or "ignore".')
        call = call.options() if isinstance(call, Task) else call
        results = {parameter: used for parameter, value in arguments.items() if (used := _steps(value)) is not None}
        plain = {parameter: value for parameter, value in arguments.items() if parameter not in results}
        payload = call.task.arguments.encode(plain, later=results.keys())
        before = [*after, *(one for used in results.values() for one in ([used] if isinstance(used, Step) else used))]
        for one in before:
            if self.steps.get(one.name) is not one:
                raise ConfigurationError(f"Step {name} waits for {one.name}, which is no step of flow {self.name}.")
        return Step(
            name=name,
            role=role,
            task=call.task.name,
            payload=payload,
            options=_options(call, payload, results),
            inputs={
                key: used.name if isinstance(used, Step) else [one.name for one in used]
                for key, used in results.items()
            },
            after=tuple(dict.fromkeys(one.name for one in before)),
            on_failure=on_failure,
        )


def request_of(job: StepJob, task: str, payload: Mapping[str, Any], options: str) -> JobRequest:
    """What is stored as a step's job."""
    kept = orjson.loads(options)
    if (at := kept.get("at")) is not None:
        kept["at"] = datetime.fromisoformat(at)
    if (limit := kept.get("limit")) is not None:
        kept["limit"] = Limit(**limit)
    return JobRequest(name=task, payload=payload, job_id=job.id, **kept)


def _options(call: TaskCall, payload: Mapping[str, Any], later: Mapping[str, Any]) -> str:
    """How the step's job is stored, checked."""
    request, task = call.request(payload), call.task
    if call.session is not None or call.on is not None or request.job_id is not None:
        raise ConfigurationError(f"Task {task.name}: a step's options have no session, queue object or job id.")
    if request.unique is not None or request.unique_key is not None:
        raise ConfigurationError(f"Task {task.name}: a step has a job of its own, which cannot be `unique`.")
    if task.limit is not None and any(f"{{{name}}}" in task.limit.key for name in later):
        raise ConfigurationError(f"Task {task.name}: its limit is by an argument that is not known before it runs.")
    new_jobs([request], max_attempts=DEFAULT_MAX_ATTEMPTS, backoff_seconds=DEFAULT_BACKOFF_SECONDS)
    stored = {name: value for name in STORED_OPTIONS if (value := getattr(request, name)) is not None}
    if request.limit is not None:
        stored["limit"] = asdict(request.limit)
    return orjson.dumps(stored).decode()


def _steps(value: Any) -> Step | list[Step] | None:
    """The steps whose results an argument stands for; None for a plain one."""
    if isinstance(value, Step):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and value:
        found = [one for one in value if isinstance(one, Step)]
        if len(found) == len(value):
            return found
        if found:
            raise ConfigurationError("An argument is a plain value, a step, or a list of nothing but steps.")
    return None


def _check_step_name(name: str) -> None:
    if len(check_name("step's name", name)) > STEP_NAME_LIMIT_CHARS:
        raise ValidationError(f"A step's name has at most {STEP_NAME_LIMIT_CHARS} characters.")
