"""One job in a worker's hands."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from typing import Any

from svc_infra.jobs.context import JobContext
from svc_infra.jobs.job import DEFAULT_MAX_CRASHES, Job
from svc_infra.jobs.task import Task
from svc_infra.obs.context import Context
from svc_infra.wiring import Wiring

SUSPECT_CRASHES = DEFAULT_MAX_CRASHES - 1


class Stop(StrEnum):
    """Why a running attempt was told to end."""

    LOST = "lost"  # another attempt holds the job
    CANCELLED = "cancelled"  # somebody cancelled the job
    DEADLINE = "deadline"
    DRAIN = "drain"


class Attempt:
    """One job in a worker's hands.

    Attributes:
        job, task: What runs; None for a task that this worker does not have.
        running: What runs it, once it has been started.
        scope: The context that it runs in, for what is told of it later.
        started: There is a handler to stop; before, the job can be handed back as it is.
        queued: It waits for a process to run in, and need not go on waiting.
        put_off_seconds: It is not to run now, but to be handed back for so long.
        finishing: The handler has ended; what is left is to tell the queue.
        completing: That is left to `Completions`.
        thread: The function that runs in one, where it does.
        written: The progress that the queue knows.
        seconds: How long the handler ran.
    """

    __slots__ = (
        "_begun",
        "_timer",
        "completing",
        "context",
        "finishing",
        "job",
        "put_off_seconds",
        "queued",
        "running",
        "scope",
        "seconds",
        "started",
        "stopped",
        "task",
        "thread",
        "written",
    )

    def __init__(self, job: Job, task: Task[..., Any] | None = None, wiring: Wiring | None = None) -> None:
        self.job = job
        self.task = task
        self.context = JobContext(job, wiring)
        self.running: asyncio.Task[None] | None = None
        self.scope = Context()
        self.thread: asyncio.Future[tuple[bool, Any]] | None = None
        self.stopped: Stop | None = None
        self.started = False
        self.queued = False
        self.put_off_seconds: float | None = None
        self.finishing = False
        self.completing = False
        self.written: tuple[int, int] | None = None
        self.seconds = 0.0
        self._begun = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the next end of its worker would bury the job, whoever brought that about."""
        return self.job.crashes >= SUSPECT_CRASHES and not (self.task is not None and self.task.cpu)

    @property
    def in_thread(self) -> bool:
        """Whether a thread runs the function: it can be asked to stop, but not be made to."""
        return self.thread is not None and not self.thread.done()

    def begin(self, timeout_seconds: float | None) -> None:
        """The handler starts now; stop it when its time is up."""
        self.started = True
        self._begun = time.perf_counter()
        if timeout_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout_seconds, self.stop, Stop.DEADLINE)

    def finish(self) -> None:
        """The handler has ended; nothing stops the rest."""
        if not self.finishing:
            self.finishing = True
            self.seconds = time.perf_counter() - self._begun
            if self._timer is not None:
                self._timer.cancel()

    def stop(self, why: Stop) -> None:
        """Tell the handler to end, while it runs; one that has not begun will not."""
        if self.stopped is not None or self.finishing:
            return
        self.stopped = why
        self.context.cancelled = True
        if self.running is not None and (self.started or self.queued):
            self.running.cancel()
