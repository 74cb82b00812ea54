"""Runs one attempt, rules on its end, and tells the queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from svc_infra.errors import ConfigurationError, DeadlineExceededError, StaleAttemptError
from svc_infra.jobs.arguments import storable
from svc_infra.jobs.flows.ends import Ends
from svc_infra.jobs.flows.flow import step_of
from svc_infra.jobs.flows.flows import Flows
from svc_infra.jobs.job import JobState, result_text
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.retry import Fate, Outage, Verdict, describe, fingerprint, verdict
from svc_infra.jobs.task import Task
from svc_infra.jobs.workers.attempt import Attempt, Stop
from svc_infra.jobs.workers.completions import Completions
from svc_infra.jobs.workers.processes import ProcessDiedError, Processes, Ruled
from svc_infra.jobs.workers.report import Meter, report_stale
from svc_infra.jobs.workers.threads import start_thread
from svc_infra.obs.context import enter, leave, restored
from svc_infra.obs.metrics import metrics
from svc_infra.obs.tracing import job_span

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

UNKNOWN_TASK_DELAY_SECONDS = 30.0  # until a job whose task this worker does not have is offered again
UNKNOWN_TASKS_LIMIT = 1000  # names that are remembered as already logged
HANDED_ON = ""  # the outcome of an attempt that `Completions` will tell of

_log = logging.getLogger(__name__)


class Runner:
    """Runs attempts, each in an asyncio task of its own.

    Args:
        queue: What is told of their ends.
        tasks: What can be run, by name.
        outage: Shared with whoever else asks the queue.
        default_timeout_seconds: For jobs that name no timeout; None for no limit.
        settled: Called for each attempt that is over.
    """

    def __init__(
        self,
        queue: JobQueue,
        tasks: Mapping[str, Task[..., Any]],
        *,
        outage: Outage,
        default_timeout_seconds: float | None,
        settled: Callable[[Attempt], None],
    ) -> None:
        self._queue = queue
        self._tasks = tasks
        self._outage = outage
        self._default_timeout_seconds = default_timeout_seconds
        self._settled = settled
        self._meters: dict[str, Meter] = {}
        self._unknown: set[str] = set()
        self._processes = Processes()
        self.completions = Completions(queue, outage, self._completed, self._not_stored)

    async def close(self) -> None:
        """End the processes."""
        await self._processes.close()

    async def run(self, attempt: Attempt, *, draining: bool) -> None:
        """Run the handler and tell the queue, or leave what succeeded to `completions`.

        Args:
            draining: Hand the job back instead.
        """
        with restored(attempt.job.context, job_id=attempt.job.id) as attempt.scope:
            try:
                await self._run(attempt, draining)
            except StaleAttemptError:
                report_stale(attempt)
            except Exception as error:  # noqa: BLE001 - the queue could not be told: logged, counted, the lease will end
                metrics.increment("jobs.outcomes_lost")
                _log.error("job.outcome_lost", exc_info=error, extra={"task": attempt.job.name})
            finally:
                if not attempt.completing:
                    self._settled(attempt)
        if attempt.thread is not None and attempt.stopped is not Stop.DRAIN:
            await asyncio.wait({attempt.thread})  # a function that cannot be stopped keeps its slot

    async def write_progress(self, attempt: Attempt) -> None:
        """Store what the handler last reported, if the queue does not have it.

        Raises:
            StaleAttemptError: The attempt no longer holds the job.
        """
        if (reported := attempt.context.reported) is not None and reported != attempt.written:
            await self._queue.progress(attempt.job, done=reported[0], total=reported[1])
            attempt.written = reported

    async def _run(self, attempt: Attempt, draining: bool) -> None:
        job = attempt.job
        if attempt.stopped is Stop.LOST:
            raise StaleAttemptError
        if attempt.stopped is Stop.CANCELLED:
            await self._tell(attempt, Verdict("The job was cancelled.", Fate.CANCEL))
        elif draining or attempt.put_off_seconds is not None:
            delay_seconds = 0.0 if draining else attempt.put_off_seconds or 0.0
            await self._outage.through(lambda: self._queue.release(job, delay_seconds=delay_seconds))
        elif attempt.task is None:
            await self._hand_on(attempt)
        else:
            await self._measured(attempt, attempt.task)

    async def _hand_on(self, attempt: Attempt) -> None:
        """Leave a job that this worker cannot run to one that can, as during a rolling deployment."""
        job = attempt.job
        metrics.increment("jobs.unknown")
        if job.name not in self._unknown and len(self._unknown) < UNKNOWN_TASKS_LIMIT:
            self._unknown.add(job.name)
            _log.error("job.unknown_task", extra={"task": job.name, "queue": job.queue, "known": sorted(self._tasks)})
        await self._outage.through(lambda: self._queue.release(job, delay_seconds=UNKNOWN_TASK_DELAY_SECONDS))

    async def _measured(self, attempt: Attempt, task: Task[..., Any]) -> None:
        if (meter := self._meters.get(task.name)) is None:
            meter = self._meters[task.name] = Meter(task.name)
        meter.started()
        outcome = "abandoned"
        try:
            with job_span(task.name, attempt.job.queue, attempt.job.id, attempt.job.attempts) as traced:
                outcome = await self._outcome(attempt, task)
                traced.ended("succeeded" if outcome == HANDED_ON else outcome)
        except StaleAttemptError:
            outcome = "stale"
            raise
        finally:
            attempt.finish()
            if outcome != HANDED_ON:
                meter.finished(attempt, outcome)

    async def _outcome(self, attempt: Attempt, task: Task[..., Any]) -> str:
        try:
            return await self._perform(attempt, task)
        except BaseException as error:  # whatever a handler raises, SystemExit included, is only its own failure
            cancelled = isinstance(error, asyncio.CancelledError)
            if attempt.finishing and (cancelled or isinstance(error, StaleAttemptError)):
                raise
            own = attempt.running is not None and attempt.running.cancelling()
            if isinstance(error, GeneratorExit) or (cancelled and not attempt.stopped and own):
                raise
            attempt.finish()
            return await self._not_succeeded(attempt, task, error)

    async def _perform(self, attempt: Attempt, task: Task[..., Any]) -> str:
        """Run the handler and acknowledge: in one transaction where the queue and the session share a database."""
        flows = _flows_of(attempt)
        earlier = None if flows is None else await self._outage.through(partial(flows.begin, attempt.job))
        if attempt.stopped:
            raise asyncio.CancelledError
        if earlier is not None:
            attempt.finish()
            result = earlier.result  # of an attempt that died before it could acknowledge
        elif task.arguments.session is None:
            result = await self._call(attempt, task, None)
        else:
            async with attempt.context.db.session() as session:
                result = await self._call(attempt, task, session)
                if flows is not None:
                    await flows.finish(attempt.context, result, session=session)
                with suppress(ConfigurationError):  # the queue lives elsewhere: commit first
                    await self._queue.ack(attempt.job, result=result, session=session)
                    return "succeeded"
        if attempt.context.reported is not None:
            await self.write_progress(attempt)
        if flows is not None and await self._outage.through(partial(flows.finish, attempt.context, result)):
            return "succeeded"
        if result is not None:
            result_text(result)  # alone, so that it does not spoil the completion of others
        if self.completions.closed:  # the handler outlived its worker
            await self._queue.ack(attempt.job, result=result)
            return "succeeded"
        self.completions.add(attempt, result)
        return HANDED_ON

    async def _call(self, attempt: Attempt, task: Task[..., Any], session: AsyncSession | None) -> Any:
        timeout_seconds = attempt.job.timeout_seconds or self._default_timeout_seconds
        if task.cpu:
            attempt.queued = True
            result = await self._processes.call(attempt.job, task, partial(attempt.begin, timeout_seconds))
            attempt.finish()
            return result
        attempt.begin(timeout_seconds)
        arguments = task.arguments.decode(attempt.job.payload)
        task.arguments.inject(arguments, attempt.context, session)
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
        attempt.finish()
        return None if result is None else storable(task.name, result)

    async def _not_succeeded(self, attempt: Attempt, task: Task[..., Any], error: BaseException) -> str:
        stopped = attempt.stopped
        if stopped is Stop.LOST:
            raise StaleAttemptError from error
        if stopped is Stop.DRAIN:
            if attempt.in_thread:
                return "abandoned"  # it still runs: the end of its lease, not this worker, gives the job to another
            await self._outage.through(lambda: self._queue.release(attempt.job))
            return "released"
        if stopped is Stop.CANCELLED:
            return await self._tell(attempt, Verdict("The job was cancelled.", Fate.CANCEL))
        if isinstance(error, Ruled):
            return await self._tell(attempt, error.verdict)
        if stopped is Stop.DEADLINE:
            error = DeadlineExceededError("The attempt did not finish in time.").with_traceback(error.__traceback__)
        ruling = verdict(error, attempt.job.attempts, task.retry)
        if isinstance(error, ProcessDiedError) and ruling.fate is Fate.RETRY:
            ruling = replace(ruling, fate=Fate.CRASH)
        return await self._tell(attempt, ruling)

    async def _tell(self, attempt: Attempt, ruling: Verdict) -> str:
        """Tell the queue what becomes of the job; the outcome's name."""
        job = attempt.job
        facts = {"task": job.name, "attempt": job.attempts, "error": ruling.error}
        if ruling.fate is Fate.SNOOZE:
            delay_seconds = ruling.delay_seconds or 0.0
            await self._outage.through(lambda: self._queue.release(job, delay_seconds=delay_seconds))
            _log.info("job.snoozed", extra={**facts, "delay_seconds": delay_seconds})
            return "snoozed"
        state = await self._outage.through(
            lambda: self._queue.fail(
                job,
                error=ruling.error,
                delay_seconds=ruling.delay_seconds,
                dead=ruling.fate is Fate.DEAD,
                cancelled=ruling.fate is Fate.CANCEL,
                crashed=ruling.fate is Fate.CRASH,
                fingerprint=ruling.fingerprint,
            )
        )
        if state is not JobState.READY and (flows := _flows_of(attempt)) is not None:
            await self._outage.through(partial(flows.ended, job, state, ruling.error))
        if ruling.fate is Fate.CANCEL:
            _log.info("job.cancelled", extra=facts)
            return "cancelled"
        _log.warning("job.failed", extra={**facts, "fingerprint": ruling.fingerprint})
        return "dead" if state is JobState.DEAD else "retried"

    def _completed(self, attempt: Attempt, outcome: str) -> None:
        """`completions` has been told by the queue how this ended."""
        token = enter(attempt.scope)
        try:
            if outcome == "stale":
                report_stale(attempt)
            elif outcome == "abandoned":
                metrics.increment("jobs.outcomes_lost")
                _log.error("job.outcome_lost", extra={"task": attempt.job.name})
            self._meters[attempt.job.name].finished(attempt, outcome)
        finally:
            leave(token)
        self._settled(attempt)

    async def _not_stored(self, attempt: Attempt, error: Exception) -> None:
        """The queue cannot store this completion, whatever else it does."""
        attempt.completing = False
        token, outcome = enter(attempt.scope), "abandoned"
        try:
            outcome = await self._tell(attempt, Verdict(describe(error), fingerprint=fingerprint(error)))
        except StaleAttemptError:
            outcome = "stale"
        finally:
            self._meters[attempt.job.name].finished(attempt, outcome)
            leave(token)
            self._settled(attempt)


def _flows_of(attempt: Attempt) -> Ends | None:
    """Who waits for the end of this job; None for a job of no flow, and where the app has no flows."""
    wiring = attempt.context.wiring
    if wiring is None or not wiring.has(Flows) or step_of(attempt.job) is None:
        return None
    return wiring.get(Flows).ends
