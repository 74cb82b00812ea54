"""What becomes of a failed attempt, and how long to leave a queue alone that does not answer."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from traceback import FrameSummary, TracebackException
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

RetryFunction: TypeAlias = Callable[[BaseException, int], float | None]
RetryPolicy: TypeAlias = RetryFunction | Mapping[type[BaseException], float | None]
"""What to do about an error: seconds until the next attempt, or None to give up.

A mapping says so by the error's type, the nearest class first; errors that it does not name wait for the job's own
backoff. A function is given the error and the number of the attempt, from 1.
"""

_log = logging.getLogger(__name__)
_ROOM = Path(__file__).parent
_OWN_FILES = {str(_ROOM / "task.py"), str(_ROOM / "arguments.py"), *map(str, (_ROOM / "workers").glob("*.py"))}


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


class Snooze(Exception):  # noqa: N818 - a request, not an error
    """Raised by a handler: not now; the job comes back later and has spent no attempt.

    Args:
        seconds: Until it comes back.
        reason: Logged.
    """

    def __init__(self, seconds: float, reason: str = "The handler asked to be called later.") -> None:
        super().__init__(reason)
        self.seconds = seconds


class Fate(StrEnum):
    """What becomes of a job whose attempt did not succeed."""

    RETRY = "retry"  # while it has attempts left
    DEAD = "dead"
    CANCEL = "cancel"
    CRASH = "crash"  # as RETRY, but counted with the crashes
    SNOOZE = "snooze"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job whose attempt did not succeed, and why; a delay of None is the job's own backoff."""

    error: str
    fate: Fate = Fate.RETRY
    delay_seconds: float | None = None
    fingerprint: str = ""


def verdict(error: BaseException, attempt: int, policy: RetryPolicy | None = None) -> Verdict:
    """Decide what becomes of a job.

    Args:
        error: What the handler raised.
        attempt: The number of the attempt, from 1.
        policy: The task's; one that fails itself is logged and counts as none.
    """
    described, mark = describe(error), fingerprint(error)
    match error:
        case Cancel():
            return Verdict(described, Fate.CANCEL)
        case Snooze():
            return Verdict(described, Fate.SNOOZE, _bounded(error.seconds))
        case Retry():
            return Verdict(described, Fate.RETRY, _bounded(error.after_seconds), mark)
    try:
        found, delay_seconds = _ruled(error, attempt, policy)
        fate = Fate.DEAD if found and delay_seconds is None else Fate.RETRY
        return Verdict(described, fate, _bounded(delay_seconds), mark)
    except Exception:  # noqa: BLE001 - a broken policy is logged and must not lose the job
        _log.exception("job.retry_policy_failed")
        return Verdict(described, fingerprint=mark)


def describe(error: BaseException) -> str:
    """An error as a job keeps it: "Type: message", then where it was raised, innermost last."""
    summary = _summary(error)
    message = str(summary).strip() or "no message"
    lines = [f"{type(error).__name__}: {message[:MESSAGE_LIMIT_CHARS]}"]
    if not isinstance(error, Retry | Cancel | Snooze):
        lines += [f"  at {frame.name} ({frame.filename}:{frame.lineno})" for frame in _frames(summary)]
    return "\n".join(lines)


def fingerprint(error: BaseException) -> str:
    """The same 16 hex digits for every error of one type from one place, whatever its message and the line numbers."""
    kind = type(error)
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in _frames(_summary(error))]
    told = "\n".join([f"{kind.__module__}.{kind.__qualname__}", *places])
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _summary(error: BaseException) -> TracebackException:
    return TracebackException(type(error), error, error.__traceback__, limit=-STACK_SEARCH_FRAMES, compact=True)


def _frames(summary: TracebackException) -> list[FrameSummary]:
    """The innermost frames that are not this room's own."""
    return [frame for frame in summary.stack if frame.filename not in _OWN_FILES][-STACK_LIMIT_FRAMES:]


def _ruled(error: BaseException, attempt: int, policy: RetryPolicy | None) -> tuple[bool, float | None]:
    """Whether the policy knows the error, and what it says of it."""
    if isinstance(policy, Mapping):
        kind = next((kind for kind in type(error).__mro__ if kind in policy), None)
        return (False, None) if kind is None else (True, policy[kind])
    return (False, None) if policy is None else (True, policy(error, attempt))


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
