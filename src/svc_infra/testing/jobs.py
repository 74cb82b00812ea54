"""An app's jobs under a test's control."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, Literal, Self

from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError
from svc_infra.jobs import Job, JobQueue, JobState, JobStore, Scheduler, Task, Worker
from svc_infra.jobs.add import JobsPlan, plan_of, purge_finished, worker_of
from svc_infra.testing.clock import FakeClock
from svc_infra.testing.job_queue import TestJobQueue
from svc_infra.wiring import Wiring, wiring_of

PATIENCE_SECONDS = 10.0
FAILED = (JobState.READY, JobState.DEAD)


class JobTester:
    """Runs jobs when the test says so, on a clock that the test moves, with the worker that runs them in production.

    `async with JobTester(app) as jobs:` starts the app (its own queue, worker and scheduler do not run) and makes it
    the one that `task.enqueue()` finds. `async with JobTester(tasks=[send_mail]) as jobs:` needs no app. Jobs that have
    finished are kept.

    Args:
        app: One that has called `add_jobs`, and has not started.
        tasks: More of what can run.
        mode: "manual": jobs wait for `drain` or `advance`. "inline": what is stored outside of a unit of work has run
            before `enqueue` returns, and a job that fails is an AssertionError there.
        clock: The time of the queue and the schedules.
        patience_seconds: Of real time, for what one `drain` runs.

    Attributes:
        queue: Where the jobs are: a `JobQueue` and a `JobStore`.
        clock: As given.
    """

    def __init__(
        self,
        app: Any = None,
        *,
        tasks: Iterable[Task[..., Any]] = (),
        mode: Literal["manual", "inline"] = "manual",
        clock: FakeClock | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.clock = FakeClock() if clock is None else clock
        self.queue = TestJobQueue(clock=self.clock)
        self._app = app
        self._wiring = Wiring(Settings(app={"env": "test"})) if app is None else wiring_of(app)
        if app is not None and "jobs" not in self._wiring.parts:
            raise ConfigurationError("This app has no jobs: call add_jobs(app) before.")
        self._plan: JobsPlan = plan_of(self._wiring)
        self._plan.add(tasks, [])
        self._plan.queue, self._plan.worker, self._plan.scheduler = self.queue, False, False
        self._patience_seconds = patience_seconds
        self._settling = False
        self._stack = AsyncExitStack()
        if mode == "inline":
            self.queue.stored = self._run_inline

    async def __aenter__(self) -> Self:
        if self._app is None:
            self._wiring.provide(JobQueue, self.queue)
            self._wiring.provide(JobStore, self.queue)
        else:
            await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self._stack.enter_context(self._wiring.active())
        self._worker: Worker = worker_of(self._wiring)
        self._schedules = [one for one in self._plan.schedules.values() if one.task is not purge_finished]
        self._scheduler = Scheduler(self.queue, self._schedules, clock=self.clock, catch_up_seconds=0.0)
        await self._scheduler.tick()  # time begins here
        running = asyncio.create_task(self._worker.run())

        async def stop() -> None:
            self._worker.stop(at_once=True)
            await running

        self._stack.push_async_callback(stop)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def drain(self) -> list[Job]:
        """Run what is due, and what that makes due, until nothing is left; the clock stands still.

        Returns:
            The jobs that ran, as they are now, in the order in which they began.

        Raises:
            TimeoutError: It takes longer than the patience.
        """
        self._settling = True
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self.queue.settle()
        finally:
            self._settling = False
        ran = [await self.queue.get(job_id) for job_id in self.queue.given_out]
        return [job for job in ran if job is not None]

    async def advance(self, seconds: float = 0.0, **units: float) -> list[Job]:
        """Let time pass: everything runs at the time at which it is due, retries and schedules included.

        Args:
            seconds, units: How much, such as `advance(days=3)`; the units are those of `timedelta`.

        Returns:
            The jobs that ran, as they were right after.
        """
        until = self.clock.now() + timedelta(seconds=seconds, **units)
        ran = await self.drain()
        while (moment := self._next_moment()) is not None and moment <= until:
            self.clock.advance((moment - self.clock.now()).total_seconds())
            await self._scheduler.tick()
            ran += await self.drain()
        self.clock.advance((until - self.clock.now()).total_seconds())
        return ran

    def enqueued(self, task: Task[..., Any] | None = None, /, **arguments: Any) -> list[Job]:
        """The jobs that are kept, whatever became of them: all, or those of a task with at least these arguments."""
        jobs = [job for job in self.queue.kept() if task is None or job.name == task.name]
        return [job for job in jobs if all(job.payload.get(name) == value for name, value in arguments.items())]

    def assert_enqueued(self, task: Task[..., Any], /, **arguments: Any) -> Job:
        """The one job of a task with at least these arguments, compared as JSON.

        Raises:
            AssertionError: There is none, or more than one.
        """
        found = self.enqueued(task, **arguments)
        if len(found) != 1:
            others = "; ".join(str(dict(job.payload)) for job in self.enqueued(task)) or "none at all"
            raise AssertionError(f"{len(found)} jobs of {task.name} have {arguments}; it has {others}.")
        return found[0]

    def assert_not_enqueued(self, task: Task[..., Any], /, **arguments: Any) -> None:
        """Check that no job of a task has these arguments.

        Raises:
            AssertionError: One does.
        """
        if found := self.enqueued(task, **arguments):
            raise AssertionError(f"{len(found)} jobs of {task.name} have {arguments}: {dict(found[0].payload)}.")

    def crash_before_ack(self, task: Task[..., Any], times: int = 1) -> None:
        """Let the worker die after the task's next attempts have succeeded and before the queue hears of it.

        What the handler did stays done, and the job runs again: a handler that is not idempotent shows it.
        """
        self.queue.crash_before_ack(task.name, times)

    def deliver_twice(self, task: Task[..., Any], times: int = 1) -> None:
        """Give each of the task's next jobs to two attempts at the same time; the first one's end is refused."""
        self.queue.deliver_twice(task.name, times)

    async def _run_inline(self) -> None:
        if self._settling:
            return  # a job that runs has stored this one: it is its turn later
        for job in await self.drain():
            if job.state in FAILED and job.last_error is not None:
                raise AssertionError(f"Job {job.name} failed: {job.last_error}")

    def _next_moment(self) -> datetime | None:
        now = self.clock.now()
        moments = [self.queue.next_due(), *(one.times.following(now) for one in self._schedules)]
        return min((moment for moment in moments if moment is not None), default=None)
