"""Keeps the leases of what a worker holds, and sees when a handler holds up everything else."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, nullcontext, suppress
from contextvars import copy_context

from svc_infra.jobs.queue import Beat, JobQueue
from svc_infra.jobs.retry import Outage, describe
from svc_infra.jobs.workers.attempt import Attempt, Stop
from svc_infra.obs.metrics import metrics

BLOCKED_LOOP_SECONDS = 1.0
"""How long an event loop may leave a call unanswered before what runs there is reported."""
BLOCKED_STACK_FRAMES = 20
LATE_INTERVALS = 1.5
"""How many times as long as it should be the pause between two beats is when the thread sends one itself."""
STOP_SECONDS = 5.0  # that the thread has to end

_log = logging.getLogger(__name__)


class Heartbeat:
    """Renews leases for as long as its block lasts: from the worker's event loop, and from a thread when that is late.

    The thread has an event loop and, where the queue has any, connections of its own. So a handler that blocks the
    worker's loop, or a pool that is used up, loses no job; the handler is reported with what it does
    (`job.loop_blocked`).

    Args:
        queue: Where the jobs are from.
        held: Gives what the worker holds; called in the thread too.
        lease_seconds: How long a lease lasts after each beat; there are three per lease, and sooner ones after a
            failure.
    """

    def __init__(self, queue: JobQueue, held: Callable[[], Collection[Attempt]], lease_seconds: float) -> None:
        self._queue = queue
        self._held = held
        self._lease_seconds = lease_seconds
        self._interval_seconds = lease_seconds / 3
        self._outage = Outage()
        self._beaten_at = time.monotonic()
        self._answered = True

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Beat, and watch the loop that this is entered in."""
        self._loop = asyncio.get_running_loop()
        self._of_loop = threading.get_ident()
        self._beaten_at = time.monotonic()
        ended = self._loop.create_future()
        stop = _Switch()
        here = asyncio.create_task(self._beat())

        def run() -> None:
            try:
                asyncio.run(self._help(stop))
            except Exception:  # noqa: BLE001 - logged; the loop's own beats go on
                _log.exception("jobs.heartbeat_failed")
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=copy_context().run, args=(run,), name="svc-infra-heartbeat", daemon=True).start()
        try:
            yield
        finally:
            stop.set()
            here.cancel()
            await asyncio.wait({here, ended}, timeout=STOP_SECONDS)

    async def beat(self, queue: JobQueue) -> None:
        """Renew every lease once, and stop the attempts that have lost theirs or are cancelled."""
        if held := list(self._held()):
            beat = await queue.heartbeat([one.job for one in held], lease_seconds=self._lease_seconds)
            self._loop.call_soon_threadsafe(_apply, held, beat)
        self._beaten_at = time.monotonic()

    async def _beat(self) -> None:
        pause = self._interval_seconds
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self._lease_seconds):
                    await self.beat(self._queue)
                self._outage.over()
                pause = self._interval_seconds
            except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs and counts itself
                pause = min(self._interval_seconds, self._outage.failed(error))

    async def _help(self, stop: _Switch) -> None:
        """What the thread does."""
        work = [asyncio.create_task(self._watch())]
        async with self._queue.heart() or nullcontext() as queue:
            if queue is not None:
                work.append(asyncio.create_task(self._beat_when_late(queue)))
            await stop.wait()
            for one in work:
                one.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _beat_when_late(self, queue: JobQueue) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds / 4)
            if time.monotonic() - self._beaten_at < LATE_INTERVALS * self._interval_seconds:
                continue
            try:
                async with asyncio.timeout(self._lease_seconds):
                    await self.beat(queue)
            except Exception as error:  # noqa: BLE001 - as above, and both tell of it
                _log.warning("jobs.late_heartbeat_failed", extra={"error": describe(error)})
                await asyncio.sleep(self._interval_seconds / 4)

    async def _watch(self) -> None:
        reported = False
        while True:
            if self._answered:
                self._answered = reported = False
                self._loop.call_soon_threadsafe(self._answer)
                await asyncio.sleep(BLOCKED_LOOP_SECONDS)
            await asyncio.sleep(BLOCKED_LOOP_SECONDS / 10)  # the whole process may have stood still
            if not (self._answered or reported):
                reported = True
                self._report()

    def _answer(self) -> None:
        self._answered = True

    def _report(self) -> None:
        running = asyncio.current_task(self._loop)
        names = [one.job.name for one in self._held() if running is not None and one.running is running]
        frame = sys._current_frames().get(self._of_loop)
        stack = traceback.format_stack(frame)[-BLOCKED_STACK_FRAMES:]
        name = names[0] if names else ""
        metrics.increment("jobs.loop_blocked", task=name)
        _log.error("job.loop_blocked", extra={"task": name, "seconds": BLOCKED_LOOP_SECONDS, "stack": "".join(stack)})


class _Switch:
    """An event that another thread sets."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def set(self) -> None:
        self._set.set()
        if self._waiting is not None:
            with suppress(RuntimeError):  # that loop has ended by itself
                self._waiting[0].call_soon_threadsafe(self._waiting[1].set)

    async def wait(self) -> None:
        event = asyncio.Event()
        self._waiting = (asyncio.get_running_loop(), event)
        if not self._set.is_set():
            await event.wait()


def _apply(held: list[Attempt], beat: Beat) -> None:
    for one in held:
        if one.job.id not in beat.held:
            one.stop(Stop.LOST)
        elif one.job.id in beat.cancelled:
            one.stop(Stop.CANCELLED)
