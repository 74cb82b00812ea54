"""Runs jobs: claims them, keeps their leases, runs their handlers and tells the queue how each attempt ended."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError, DeadlineExceededError, StaleAttemptError
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import RESERVE_LIMIT_JOBS, JobQueue, JobStore
from svc_infra.jobs.retry import Cancel, Outage, verdict
from svc_infra.jobs.task import JobContext, Task, by_name, start_thread, storable
from svc_infra.obs.context import restored
from svc_infra.obs.metrics import metrics
from svc_infra.obs.tracing import job_span
from svc_infra.wiring import Wiring

PROGRESS_INTERVAL_SECONDS = 0.5  # between two writes of one job's progress
UNKNOWN_TASK_DELAY_SECONDS = 30.0  # until a job whose task this worker does not have is offered again
UNKNOWN_TASKS_LIMIT = 1000  # names that are remembered as already logged
CANCEL_WINDOW_SECONDS = 3600.0  # that a job is out of reach while it is being cancelled
CANCEL_GRACE_SECONDS = 5.0  # that a handler has to clean up when it is cancelled for a shutdown

_log = logging.getLogger(__name__)


class Stop(StrEnum):
    """Why a running attempt was told to end."""

    LOST = "lost"  # another attempt holds the job
    DEADLINE = "deadline"
    DRAIN = "drain"


class Attempt:
    """One job in a worker's hands."""

    task: asyncio.Task[None]

    def __init__(self, job: Job, wiring: Wiring | None) -> None:
        self.job = job
        self.context = JobContext(job, wiring)
        self.thread: asyncio.Future[tuple[bool, Any]] | None = None
        self.stopped: Stop | None = None
        self.started = False  # until then there is no handler to stop, and the job can be handed back as it is
        self.finishing = False  # the handler has ended; what is left is to tell the queue
        self.written: tuple[int, int] | None = None  # the progress that the queue knows

    @property
    def in_thread(self) -> bool:
        """Whether a thread runs the function: it can be asked to stop, but not be made to."""
        return self.thread is not None and not self.thread.done()

    def stop(self, why: Stop) -> None:
        """Tell the handler to end, while it runs."""
        if self.started and self.stopped is None and not self.finishing:
            self.stopped = why
            self.context.cancelled = True
            self.task.cancel()


@dataclass(slots=True)
class Heartbeat:
    """Renews the leases of what a worker holds, however long its jobs run.

    Attributes:
        held: Gives the attempts to renew.
        outage: Shared with whoever else asks the queue.
    """

    queue: JobQueue
    held: Callable[[], list[Attempt]]
    outage: Outage
    lease_seconds: float

    async def run(self) -> None:
        """Beat three times per lease, and sooner after a failure, until cancelled."""
        pause = interval = self.lease_seconds / 3
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self.lease_seconds):
                    await self.beat()
                pause = interval
            except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs and counts itself
                pause = min(interval, self.outage.failed(error))

    async def beat(self) -> None:
        """Renew every lease once, and stop the attempts that have lost theirs."""
        if held := self.held():
            beat = await self.queue.heartbeat([one.job for one in held], lease_seconds=self.lease_seconds)
            self.outage.over()
            for one in held:
                if one.job.id not in beat.held:
                    one.stop(Stop.LOST)


class Worker:
    """Runs the jobs of some queues, several at a time.

    Every attempt runs in the context of whoever enqueued its job. Leases are renewed while handlers run; an attempt
    whose lease is lost all the same is cancelled and its outcome dropped. The worker outlives every outage of the
    queue and everything that a handler raises.

    Args:
        queue: Where jobs come from.
        tasks: What it can run. A job of another name is handed back, unspent, for a worker that knows it.
        wiring: The app whose objects handlers use; needed by those that take a session.
        queues: The named queues to serve.
        concurrency: How many jobs run at the same time, in the event loop and in threads together.
        lease_seconds: How long a job is safe from other workers without a sign of life from this one.
        poll_interval_seconds: Longest wait between two looks at a queue that cannot announce new jobs.
        drain_seconds: How long running jobs may go on after `stop` before they are cancelled and handed back.
        default_timeout_seconds: Longest run of an attempt whose job names none; None for no limit.
        worker_id: Shown with the jobs that it holds; made up when left out.

    Raises:
        ConfigurationError: Two tasks have one name, a task cannot be run, or there is no queue or no concurrency.
    """

    def __init__(
        self,
        queue: JobQueue,
        tasks: Iterable[Task[..., Any]],
        *,
        wiring: Wiring | None = None,
        queues: Sequence[str] = ("default",),
        concurrency: int = 10,
        lease_seconds: float = 15.0,
        poll_interval_seconds: float = 0.5,
        drain_seconds: float = 20.0,
        default_timeout_seconds: float | None = None,
        worker_id: str | None = None,
    ) -> None:
        if concurrency < 1 or not queues or isinstance(queues, str):
            raise ConfigurationError("A worker needs a list of queues and a concurrency of at least 1.")
        self._queue = queue
        self._tasks = by_name(tasks)
        if wiring is None and (needy := [one.name for one in self._tasks.values() if one.arguments.session]):
            raise ConfigurationError(f"Task {needy[0]} takes a session: give the worker the app's wiring.")
        self._wiring = wiring
        self._queues = tuple(queues)
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._poll_interval_seconds = poll_interval_seconds
        self._drain_seconds = drain_seconds
        self._default_timeout_seconds = default_timeout_seconds
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._attempts: set[Attempt] = set()
        self._unknown: set[str] = set()
        self._outage = Outage()
        self._freed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._resting: asyncio.Future[None] | None = None

    def stop(self, *, at_once: bool = False) -> None:
        """Claim nothing more and let `run` return when the running jobs have ended; may be called again.

        Args:
            at_once: Cancel the running jobs now and hand them back.
        """
        self._stopping.set()
        self._freed.set()
        if at_once:
            self._at_once.set()
        if self._resting is not None:
            self._resting.cancel()

    async def run(self) -> None:
        """Work until `stop`, then drain; being cancelled is the same as `stop(at_once=True)`."""
        with self._wiring.active() if self._wiring else nullcontext():  # for every task that is started in here
            heartbeat = Heartbeat(self._queue, self._held, self._outage, self._lease_seconds)
            claims = asyncio.create_task(self._claim())
            others = [asyncio.create_task(one) for one in (heartbeat.run(), self._report(), self._stopping.wait())]
            _log.info("jobs.worker_started", extra={"worker_id": self.worker_id, "queues": self._queues})
            try:
                await asyncio.wait({claims, others[-1]}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self._at_once.set()
                raise
            finally:
                self.stop()
                await self._drain(claims)
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                _log.info("jobs.worker_stopped", extra={"worker_id": self.worker_id, "left": len(self._attempts)})

    async def _claim(self) -> None:
        while not self._stopping.is_set():
            if (free := min(self._concurrency - len(self._attempts), RESERVE_LIMIT_JOBS)) <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                jobs = await self._queue.reserve(
                    worker_id=self.worker_id, queues=self._queues, limit=free, lease_seconds=self._lease_seconds
                )
                for job in jobs:
                    self._start(job)
                if len(jobs) < free:
                    await self._rest(self._queue.wait(self._poll_interval_seconds))
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs and counts itself
                await self._rest(asyncio.sleep(self._outage.failed(error)))

    async def _rest(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, but no longer than until `stop`."""
        self._resting = asyncio.ensure_future(waiting)
        if self._stopping.is_set():
            self._resting.cancel()
        await asyncio.wait({self._resting})
        if not self._resting.cancelled():
            self._resting.result()

    def _start(self, job: Job) -> None:
        attempt = Attempt(job, self._wiring)
        attempt.task = asyncio.create_task(self._run(attempt))
        self._attempts.add(attempt)
        attempt.task.add_done_callback(lambda task: self._ended(attempt, task))

    def _ended(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            metrics.increment("jobs.outcomes_lost")
            _log.error("job.outcome_lost", exc_info=error, extra={"job_id": attempt.job.id, "task": attempt.job.name})

    async def _run(self, attempt: Attempt) -> None:
        job = attempt.job
        task = self._tasks.get(job.name)
        with restored(job.context, job_id=job.id):
            try:
                if self._stopping.is_set():
                    await self._outage.through(lambda: self._queue.release(job))
                elif task is None:
                    await self._hand_on(job)
                else:
                    await self._run_task(attempt, task)
            except StaleAttemptError:
                metrics.increment("jobs.stale")
                _log.warning("job.stale", extra={"task": job.name, "attempt": job.attempts})
        if attempt.thread is not None and attempt.stopped is not Stop.DRAIN:
            await asyncio.wait({attempt.thread})  # a function that cannot be stopped keeps its slot

    async def _hand_on(self, job: Job) -> None:
        """Leave a job that this worker cannot run to one that can, as during a rolling deployment."""
        metrics.increment("jobs.unknown")
        if job.name not in self._unknown and len(self._unknown) < UNKNOWN_TASKS_LIMIT:
            self._unknown.add(job.name)
            _log.error("job.unknown_task", extra={"task": job.name, "queue": job.queue, "known": sorted(self._tasks)})
        await self._outage.through(lambda: self._queue.release(job, delay_seconds=UNKNOWN_TASK_DELAY_SECONDS))

    async def _run_task(self, attempt: Attempt, task: Task[..., Any]) -> None:
        facts: dict[str, Any] = {"task": task.name, "attempt": attempt.job.attempts}
        metrics.increment("jobs.started", task=task.name)
        _log.debug("job.started", extra=facts)
        started, outcome = time.perf_counter(), "abandoned"
        try:
            with job_span(task.name, attempt.job.queue, attempt.job.id, attempt.job.attempts) as traced:
                outcome = traced.ended(await self._outcome(attempt, task))
        except StaleAttemptError:
            outcome = "stale"
            raise
        finally:
            seconds = time.perf_counter() - started
            metrics.increment("jobs.finished", task=task.name, outcome=outcome)
            metrics.observe("jobs.run_seconds", seconds, task=task.name)
            _log.info("job.finished", extra={**facts, "outcome": outcome, "seconds": round(seconds, 6)})

    async def _outcome(self, attempt: Attempt, task: Task[..., Any]) -> str:
        timer = None
        if (timeout_seconds := attempt.job.timeout_seconds or self._default_timeout_seconds) is not None:
            timer = asyncio.get_running_loop().call_later(timeout_seconds, attempt.stop, Stop.DEADLINE)
        attempt.started = True
        try:
            await self._perform(attempt, task)
        except BaseException as error:  # whatever a handler raises, SystemExit included, is only its own failure
            cancelled = isinstance(error, asyncio.CancelledError)
            if attempt.finishing and (cancelled or isinstance(error, StaleAttemptError)):
                raise
            if isinstance(error, GeneratorExit) or (cancelled and not attempt.stopped and attempt.task.cancelling()):
                raise
            return await self._not_succeeded(attempt, task, error)
        finally:
            if timer is not None:
                timer.cancel()
        return "succeeded"

    async def _perform(self, attempt: Attempt, task: Task[..., Any]) -> None:
        """Run the handler and acknowledge: in one transaction where the queue and the session share a database."""
        job = attempt.job
        if task.arguments.session is None:
            result = await self._call(attempt, task, None)
        else:
            async with attempt.context.db.session() as session:
                result = await self._call(attempt, task, session)
                with suppress(ConfigurationError):  # the queue lives elsewhere: commit first
                    await self._queue.ack(job, result=result, session=session)
                    return
        await self._write_progress(attempt)
        await self._outage.through(lambda: self._queue.ack(job, result=result))

    async def _call(self, attempt: Attempt, task: Task[..., Any], session: AsyncSession | None) -> Any:
        arguments = task.arguments.decode(attempt.job.payload)
        if task.arguments.context is not None:
            arguments[task.arguments.context] = attempt.context
        if task.arguments.session is not None:
            arguments[task.arguments.session] = session
        if task.is_async:
            result = await task.function(**arguments)
        else:
            attempt.thread = start_thread(partial(task.function, **arguments))
            try:
                returned, result = await asyncio.shield(attempt.thread)
            except asyncio.CancelledError:
                if attempt.stopped is not Stop.DRAIN:
                    raise
                returned, result = await asyncio.shield(attempt.thread)  # it may see `cancelled` and end in time
            if not returned:
                raise result
        attempt.finishing = True
        return storable(task, result)

    async def _not_succeeded(self, attempt: Attempt, task: Task[..., Any], error: BaseException) -> str:
        job, stopped, attempt.finishing = attempt.job, attempt.stopped, True
        if stopped is Stop.LOST:
            raise StaleAttemptError from error
        if stopped is Stop.DRAIN:
            if attempt.in_thread:
                return "abandoned"  # it still runs: the end of its lease, not this worker, gives the job to another
            await self._outage.through(lambda: self._queue.release(job))
            return "released"
        if isinstance(error, Cancel):
            _log.info("job.cancelled", extra={"task": task.name, "reason": str(error)})
            # Out of reach first: in between nobody can claim it, and after a crash there it cancels itself again.
            await self._outage.through(lambda: self._queue.release(job, delay_seconds=CANCEL_WINDOW_SECONDS))
            await self._outage.through(lambda: cast(JobStore, self._queue).cancel(job.id))
            return "cancelled"
        if stopped is Stop.DEADLINE:
            error = DeadlineExceededError("The attempt did not finish in time.").with_traceback(error.__traceback__)
        ruling = verdict(error, job.attempts, task.retry)
        state = await self._outage.through(
            lambda: self._queue.fail(job, error=ruling.error, delay_seconds=ruling.delay_seconds, dead=ruling.dead)
        )
        _log.warning("job.failed", extra={"task": task.name, "attempt": job.attempts, "error": ruling.error})
        return "dead" if state is JobState.DEAD else "retried"

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_SECONDS)
            for attempt in self._held():
                try:
                    await self._write_progress(attempt)
                except StaleAttemptError:
                    attempt.stop(Stop.LOST)
                except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs itself
                    self._outage.failed(error)

    async def _write_progress(self, attempt: Attempt) -> None:
        if (reported := attempt.context.reported) is not None and reported != attempt.written:
            await self._queue.progress(attempt.job, done=reported[0], total=reported[1])
            attempt.written = reported

    async def _drain(self, claims: asyncio.Task[None]) -> None:
        at_once = asyncio.create_task(self._at_once.wait())
        await self._all_ended(claims, self._drain_seconds, at_once)
        for attempt in self._attempts:
            attempt.stop(Stop.DRAIN)
        await self._all_ended(claims, CANCEL_GRACE_SECONDS)
        for task in self._pending(claims):
            task.cancel()
        await self._all_ended(claims, CANCEL_GRACE_SECONDS)
        at_once.cancel()

    async def _all_ended(self, claims: asyncio.Task[None], seconds: float, *unless: asyncio.Task[Any]) -> None:
        until = time.monotonic() + seconds
        while (pending := self._pending(claims)) and not any(one.done() for one in unless):
            if (left := until - time.monotonic()) <= 0:
                return
            await asyncio.wait({*pending, *unless}, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _pending(self, claims: asyncio.Task[None]) -> set[asyncio.Task[None]]:
        return {task for task in (claims, *(one.task for one in self._attempts)) if not task.done()}

    def _held(self) -> list[Attempt]:
        return [one for one in self._attempts if one.stopped is None and not one.finishing]
