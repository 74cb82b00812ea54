"""What a handler is told about the job that it runs for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.jobs.job import Job, check_number
from svc_infra.wiring import Wiring

T = TypeVar("T")


@dataclass(slots=True)
class JobContext:
    """The job that a handler runs for; a parameter annotated with this class receives it.

    Attributes:
        job: The job as it was claimed.
        wiring: The app that the worker belongs to, where there is one.
        cancelled: Set when the attempt should end: its time is up, its job is cancelled, its lease is lost or the
            worker drains. Async handlers are cancelled as well; functions in a thread look here, and raise to stop.
        reported: The progress last reported: done and total.
    """

    job: Job
    wiring: Wiring | None = None
    cancelled: bool = False
    reported: tuple[int, int] | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.job.attempts

    @property
    def token(self) -> str:
        """The attempt's fencing token: an idempotency key for calls to other services."""
        return self.job.token or ""

    @property
    def scheduled_at(self) -> datetime | None:
        """When the tick was due that this job was stored for; None for a job of no schedule."""
        due = self.job.context.get("scheduled_at")
        return None if due is None else datetime.fromisoformat(due)

    @property
    def flow_id(self) -> str | None:
        """The flow that the job is a step or a callback of; None for a job of no flow."""
        return self.job.context.get("flow_id")

    def progress(self, done: int, total: int = 0) -> None:
        """Report how far the attempt is; the worker stores the latest report about twice a second.

        Args:
            done, total: How much is done of how much; a total of 0 when that is unknown.

        Raises:
            ValidationError: They are no counts.
        """
        self.reported = (check_number("progress", done, 0, 2**53), check_number("progress", total, 0, 2**53))

    def get(self, kind: type[T]) -> T:
        """An object that the app's rooms share.

        Raises:
            ConfigurationError: There is no such object, or the worker runs outside of an app.
        """
        if self.wiring is None:
            raise ConfigurationError(f"This worker has no {kind.__name__}: give it the app's wiring.")
        return self.wiring.get(kind)

    @property
    def db(self) -> AsyncDatabase:
        """The app's database, for handlers that make their own units of work."""
        return self.get(AsyncDatabase)
