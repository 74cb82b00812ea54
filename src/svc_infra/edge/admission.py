"""Which handlers run: how many at once, and for how long each until its answer begins."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import Protocol

from svc_infra.config.serving import EdgeSettings
from svc_infra.errors import UnavailableError
from svc_infra.obs.context import Context
from svc_infra.obs.metrics import metrics

RETRY_AFTER_SECONDS = 1.0


class Handling(Protocol):
    """A request whose answer has not begun."""

    context: Context
    admitted: bool
    """Its handler runs, or has run."""

    def expire(self) -> None:
        """End the handler: its time is over."""
        ...


class Admission:
    """Lets in as many requests as may run at once; the others wait a moment in a short queue, or are refused.

    A request counts until its answer begins, so streams and slow readers take no place and have no deadline; nor does
    it count while its handler waits for the client, or a thousand that send slowly would keep everybody out. One timer
    serves the deadlines of all requests; a timer for each would cost more than the rest of this class.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._max_concurrency = settings.max_concurrency
        self._max_queue = settings.max_queue
        self._queue_timeout_seconds = settings.queue_timeout_seconds
        self._seconds = settings.handler_timeout_seconds or inf
        self._running: set[Handling] = set()
        self._queue: dict[Handling, asyncio.Future[None]] = {}  # longest waiting first
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    def enter(self, handling: Handling, now: float, always: bool) -> bool:
        """Let a handler run if there is a place; from then on it has a deadline until its answer begins.

        Args:
            handling: Its request.
            now: The time of `time.monotonic`.
            always: Let it run in any case.

        Returns:
            Whether it runs; if not, `wait` for a place.
        """
        if len(self._running) >= self._max_concurrency and not always:
            return False
        self._running.add(handling)
        handling.admitted = True
        handling.context.deadline = now + self._seconds
        if self._timer is None or not self._loop.is_running():  # each run of an app may have a loop of its own
            self._watch(self._seconds)
        return True

    async def wait(self, handling: Handling) -> None:
        """Wait for a place.

        Raises:
            UnavailableError: The queue is full, or no place became free in time.
        """
        if len(self._queue) >= self._max_queue:
            raise _shed("queue_full")
        place = self._queue[handling] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._queue_timeout_seconds):
                await place
        except BaseException as error:
            self._queue.pop(handling, None)
            self.leave(handling)  # the place may have come at the same moment
            handling.admitted = False
            if isinstance(error, TimeoutError):
                raise _shed("queue_timeout") from None
            raise

    def leave(self, handling: Handling) -> None:
        """Count a request out, once or more often, and give its place to the one that has waited for longest."""
        if handling not in self._running:
            return
        self._running.remove(handling)
        if self._queue and len(self._running) < self._max_concurrency:
            waiting = next(iter(self._queue))
            place = self._queue.pop(waiting)
            self.enter(waiting, monotonic(), always=True)
            if not place.done():  # else it has just given up, and will leave
                place.set_result(None)

    def resume(self, handling: Handling, *, always: bool = False) -> bool:
        """Count a running handler's time anew, after it has waited for its client; give it a place if it has left its.

        Returns:
            Whether it has one; if not, `wait`.
        """
        deadline = handling.context.deadline
        if handling not in self._running and not self.enter(handling, monotonic(), always):
            return False
        handling.context.deadline = max(deadline, monotonic() + self._seconds)
        return True

    def _watch(self, seconds: float) -> None:
        if seconds != inf:
            self._loop = asyncio.get_running_loop()  # asks the kernel for the process id, so not for every request
            self._timer = self._loop.call_later(max(0.0, seconds), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = monotonic()
        for handling in [handling for handling in self._running if handling.context.deadline <= now]:
            handling.context.deadline = inf  # cancelled once; it keeps its place until it has really ended
            handling.expire()
        if self._running:  # one that comes meanwhile may have less time than all of these
            next_deadline = min(handling.context.deadline for handling in self._running)
            self._watch(min(next_deadline - now, self._seconds))


def _shed(reason: str) -> UnavailableError:
    metrics.increment("http.server.requests.shed", reason=reason)
    return UnavailableError("The service has too much to do.", retry_after_seconds=RETRY_AFTER_SECONDS)
