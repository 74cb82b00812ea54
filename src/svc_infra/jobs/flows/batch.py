"""Many jobs whose common end matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from svc_infra.jobs.flows.plan import Called, OnFailure, Plan
from svc_infra.jobs.queue import ENQUEUE_LIMIT_JOBS
from svc_infra.types import new_id


class Batch(Plan):
    """Jobs that start at once and wait for nothing; the batch ends when all of them have, at once when it is empty.

    A failed job stops none of the others. While one of its jobs has not ended, a batch takes more: `Flows.extend`.
    """

    kind: ClassVar[str] = "batch"
    limit_steps: ClassVar[int] = ENQUEUE_LIMIT_JOBS

    def add(
        self,
        call: Called,
        arguments: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        on_failure: OnFailure = "fail",
    ) -> None:
        """Add a job.

        Args:
            call: What it runs: a task, or `task.options(...)`.
            arguments: Its arguments.
            name: Adding a name that a batch has already changes nothing; unique when left out.
            on_failure: "ignore" lets the batch succeed without it.

        Raises:
            ValidationError: The arguments do not fit the task, or there are more than 10,000 jobs.
            ConfigurationError: The name is taken.
        """
        self._add(str(new_id()) if name is None else name, call, arguments or {}, on_failure=on_failure)
