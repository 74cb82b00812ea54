"""What becomes of a failed attempt, and how long to leave a queue alone that does not answer."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import TracebackException
from typing import TypeAlias, TypeVar

from svc_infra.errors import DeadlineExceededError, UnavailableError
from svc_infra.jobs.job import DELAY_LIMIT_SECONDS
from svc_infra.obs.metrics import metrics

MESSAGE_LIMIT_CHARS = 1000
STACK_LIMIT_FRAMES = 5
STACK_SEARCH_FRAMES = 20
OUTAGE_BACKOFF_SECONDS = 0.1
OUTAGE_BACKOFF_CAP_SECONDS = 5.0
OUTAGE_PATIENCE_SECONDS = 600.0

T = TypeVar("T")

RetryPolicy: TypeAlias = Callable[[BaseException, int], float | None]
"""Given what an attempt raised and its number (from 1): seconds until the next attempt, or None to give up."""

_log = logging.getLogger(__name__)
_OWN_FILES = {str(Path(__file__).with_name(name)) for name in ("worker.py", "task.py")}


class Retry(Exception):  # noqa: N818 - a request, not an error
    """Raised by a handler: end this attempt and try again at a time of its choosing.

    It spends an attempt; when none is left, the job goes to the dead letter.

    Args:
        reason: Kept as the job's last error.
        after_seconds: Until the next attempt; None for the job's own backoff.
    """

    def __init__(self, reason: str = "The handler asked for another attempt.", *, after_seconds: float | None = None):
        super().__init__(reason)
        self.after_seconds = after_seconds


class Cancel(Exception):  # noqa: N818 - a request, not an error
    """Raised by a handler: the job has become pointless; it ends as cancelled.

    Args:
        reason: Logged.
    """

    def __init__(self, reason: str = "The handler saw nothing left to do.") -> None:
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job whose attempt failed."""

    error: str
    delay_seconds: float | None = None
    dead: bool = False


def verdict(error: BaseException, attempt: int, policy: RetryPolicy | None = None) -> Verdict:
    """Decide what becomes of a job.

    Args:
        error: What the handler raised.
        attempt: The number of the attempt, from 1.
        policy: The task's; a policy that fails itself is logged and counts as none.
    """
    described = describe(error)
    if isinstance(error, Retry):
        return Verdict(described, _bounded(error.after_seconds))
    if policy is None:
        return Verdict(described)
    try:
        delay_seconds = policy(error, attempt)
        return Verdict(described, _bounded(delay_seconds), dead=delay_seconds is None)
    except Exception:  # noqa: BLE001 - a broken policy is logged and must not lose the job
        _log.exception("job.retry_policy_failed")
        return Verdict(described)


def describe(error: BaseException) -> str:
    """An error as a job keeps it: "Type: message", then where it was raised, innermost last."""
    summary = TracebackException(type(error), error, error.__traceback__, limit=-STACK_SEARCH_FRAMES, compact=True)
    message = str(summary).strip() or "no message"
    lines = [f"{type(error).__name__}: {message[:MESSAGE_LIMIT_CHARS]}"]
    if not isinstance(error, Retry):
        frames = [frame for frame in summary.stack if frame.filename not in _OWN_FILES]
        lines += [f"  at {frame.name} ({frame.filename}:{frame.lineno})" for frame in frames[-STACK_LIMIT_FRAMES:]]
    return "\n".join(lines)


def _bounded(delay_seconds: float | None) -> float | None:
    return None if delay_seconds is None else min(max(0.0, delay_seconds), DELAY_LIMIT_SECONDS)


class Outage:
    """A stretch of time in which a queue does not answer: logged once, with growing pauses between tries."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failures = 0

    def failed(self, error: BaseException) -> float:
        """Note a failure.

        Returns:
            Seconds to wait before the next try.
        """
        metrics.increment("jobs.queue_errors")
        if self._since is None:
            self._since = time.monotonic()
            _log.error("jobs.queue_unavailable", extra={"error": describe(error)})
        upper = min(OUTAGE_BACKOFF_CAP_SECONDS, OUTAGE_BACKOFF_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return upper * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing

    async def through(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the queue again and again until it answers.

        Raises:
            UnavailableError, DeadlineExceededError: It did not within `OUTAGE_PATIENCE_SECONDS`.
        """
        until = time.monotonic() + OUTAGE_PATIENCE_SECONDS
        while True:
            try:
                answer = await ask()
            except (UnavailableError, DeadlineExceededError) as error:
                pause_seconds = self.failed(error)
                if time.monotonic() + pause_seconds > until:
                    raise
                await asyncio.sleep(pause_seconds)
            else:
                self.over()
                return answer

    def over(self) -> None:
        """Note an answer."""
        if self._since is not None:
            _log.info("jobs.queue_available", extra={"outage_seconds": round(time.monotonic() - self._since, 3)})
            self._since, self._failures = None, 0
