"""What is told of an attempt that is over: a line of the log, and metrics."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, NamedTuple

from svc_infra.jobs.workers.attempt import Attempt
from svc_infra.obs.logging import log_later
from svc_infra.obs.metrics import metrics

_log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """The end of an attempt, as its line tells of it."""

    task: str
    attempt: int
    outcome: str
    seconds: float

    def line(self, at: float, pid: int) -> dict[str, Any]:
        """The line without the facts of its context."""
        return {
            "time": datetime.fromtimestamp(at, UTC),
            "level": "INFO",
            "logger": _log.name,
            "pid": pid,
            "message": "job.finished",
            **self._asdict(),
            "seconds": round(self.seconds, 6),
        }


class Meter:
    """The metrics of one task."""

    def __init__(self, task: str) -> None:
        self._labels = {"task": task}
        self._begun = metrics.family("counter", "jobs.started", ("task",), "Attempts begun.")
        self._over = metrics.family("counter", "jobs.finished", ("task", "outcome"), "Attempts that are over.")
        self._seconds = metrics.family("histogram", "jobs.run_seconds", ("task",), "How long handlers ran.")

    def started(self) -> None:
        """Count an attempt that begins."""
        self._begun.add(self._labels, 1)

    def finished(self, attempt: Attempt, outcome: str) -> None:
        """Count and log an attempt that is over; called in its context."""
        self._over.add({**self._labels, "outcome": outcome}, 1)
        self._seconds.observe(self._labels, attempt.seconds)
        log_later(_log, Finished(attempt.job.name, attempt.job.attempts, outcome, attempt.seconds))


def report_stale(attempt: Attempt) -> None:
    """Count and log an attempt that no longer holds its job; called in its context."""
    metrics.increment("jobs.stale")
    _log.warning("job.stale", extra={"task": attempt.job.name, "attempt": attempt.job.attempts})
