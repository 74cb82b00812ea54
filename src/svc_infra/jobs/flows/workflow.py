"""Steps that wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from svc_infra.jobs.flows.plan import Called, OnFailure, Plan, Step
from svc_infra.jobs.task import Task


class Workflow(Plan):
    """A directed acyclic graph of steps, each a job that starts when those before it have ended.

    A step that is an argument of a later one stands for its result, which is checked against the parameter's type
    when the later step runs. After a step has failed no further one starts, unless its failure is ignored.
    """

    kind: ClassVar[str] = "workflow"

    def add(
        self,
        call: Called,
        arguments: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        after: Iterable[Step] = (),
        on_failure: OnFailure = "fail",
    ) -> Step:
        """Add a step.

        Args:
            call: What it runs: a task, or `task.options(...)`.
            arguments: Its arguments; a step stands for its result, a list of steps for the list of their results.
            name: The task's name when left out, with a number from the second on.
            after: Steps that end before this one starts, beside those whose results it takes.
            on_failure: "fail" fails the flow; "ignore" lets it go on as if the step had returned None.

        Returns:
            The step, for the arguments and the `after` of later ones.

        Raises:
            ValidationError: The arguments do not fit the task, or there are more than 1,000 steps.
            ConfigurationError: The name is taken, or a step belongs to another flow.
        """
        if name is None:
            name = task = (call if isinstance(call, Task) else call.task).name
            number = 1
            while name in self.steps:
                number += 1
                name = f"{task}-{number}"
        return self._add(name, call, arguments or {}, after=after, on_failure=on_failure)
