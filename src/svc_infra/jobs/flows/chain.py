"""Steps one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.flows.plan import Called, Plan, Step
from svc_infra.jobs.task import Task


class Chain(Plan):
    """Steps that run one after the other, each with the result of the one before."""

    kind: ClassVar[str] = "chain"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._last: Step | None = None

    def then(self, call: Called, arguments: Mapping[str, Any] | None = None, *, into: str | None = None) -> Self:
        """Add a step.

        Args:
            call: What it runs: a task, or `task.options(...)`.
            arguments: Its other arguments.
            into: The parameter that receives the result of the step before; when left out the first one that has no
                default and is not among the arguments, and none where there is no such parameter.

        Returns:
            The chain.

        Raises:
            ValidationError: The arguments do not fit the task, or there are more than 1,000 steps.
            ConfigurationError: There is no step before, whose result `into` could receive.
        """
        given = dict(arguments or {})
        task = call if isinstance(call, Task) else call.task
        last = self._last
        if last is None and into is not None:
            raise ConfigurationError(f"Flow {self.name}: its first step receives no result.")
        if last is not None:
            into = into or next((name for name in task.arguments.required if name not in given), None)
            if into is not None:
                given[into] = last
        name = f"{len(self.steps) + 1}-{task.name}"
        self._last = self._add(name, call, given, after=[] if last is None else [last])
        return self
