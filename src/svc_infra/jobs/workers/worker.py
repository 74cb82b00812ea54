"""Claims jobs, keeps no more than it can run, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, cast

from svc_infra.errors import ConfigurationError, StaleAttemptError, UnavailableError, ValidationError
from svc_infra.jobs.job import DURATION_LIMIT_SECONDS, JobState, check_name, check_number
from svc_infra.jobs.queue import LIST_LIMIT_JOBS, QUEUES_LIMIT, RESERVE_LIMIT_JOBS, JobQueue, JobStore
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.task import Task, by_name
from svc_infra.jobs.workers.attempt import Attempt, Stop
from svc_infra.jobs.workers.heartbeat import Heartbeat
from svc_infra.jobs.workers.runner import Runner
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import Wiring

PROGRESS_INTERVAL_SECONDS = 0.5  # between two writes of one job's progress
CANCEL_GRACE_SECONDS = 5.0  # that a handler has to clean up when it is cancelled for a shutdown
STALL_SECONDS = 60.0
SUSPECT_PAUSE_SECONDS = 1.0  # that a suspect is handed back for while another one runs

_log = logging.getLogger(__name__)


class Worker:
    """Runs the jobs of some queues, several at a time.

    Every attempt runs in the context of whoever enqueued its job. Leases are renewed while handlers run; an attempt
    whose lease is lost all the same is cancelled and its outcome dropped. The worker outlives every outage of the
    queue and everything that a handler raises.

    Args:
        queue: Where jobs come from.
        tasks: What it can run. A job of another name is handed back, unspent, for a worker that knows it.
        wiring: The app whose objects handlers use; needed by those that take a session or what the app provides.
        queues: The named queues to serve.
        concurrency: How many jobs run at the same time, in the event loop, in threads and in processes together.
        prefetch: How many more jobs are claimed to be at hand when one of those ends: fewer round trips, while other
            workers may have nothing to do.
        lease_seconds: How long a job is safe from other workers without a sign of life from this one.
        poll_interval_seconds: Longest wait between two looks at a queue that cannot announce new jobs.
        drain_seconds: How long running jobs may go on after `stop` before they are cancelled and handed back.
        default_timeout_seconds: Longest run of an attempt whose job names none; None for no limit.
        stall_seconds: How long a due job may wait for a worker that has room for it until `check` refuses.
        worker_id: Shown with the jobs that it holds; made up when left out.

    Raises:
        ConfigurationError: Two tasks have one name, a task cannot be run or needs what the app does not provide, or a
            queue's name, the lease or the concurrency is one that no worker can have.
    """

    def __init__(
        self,
        queue: JobQueue,
        tasks: Iterable[Task[..., Any]],
        *,
        wiring: Wiring | None = None,
        queues: Sequence[str] = ("default",),
        concurrency: int = 10,
        prefetch: int = 0,
        lease_seconds: float = 15.0,
        poll_interval_seconds: float = 0.5,
        drain_seconds: float = 20.0,
        default_timeout_seconds: float | None = None,
        stall_seconds: float = STALL_SECONDS,
        worker_id: str | None = None,
    ) -> None:
        if concurrency < 1 or prefetch < 0 or not queues or isinstance(queues, str):
            raise ConfigurationError("A worker needs a list of queues and a concurrency of at least 1.")
        _check_terms(queues, lease_seconds, worker_id)
        self._queue = queue
        self._tasks = by_name(tasks)
        _check_needs(self._tasks.values(), wiring)
        self._wiring = wiring
        self._queues = tuple(queues)
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._lease_seconds = lease_seconds
        self._poll_interval_seconds = poll_interval_seconds
        self._drain_seconds = drain_seconds
        self._stall_seconds = stall_seconds
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._held: set[Attempt] = set()  # whose jobs are this worker's until the queue has been told of their ends
        self._waiting: deque[Attempt] = deque()  # those of them that have no slot yet
        self._running: set[asyncio.Task[None]] = set()  # the slots
        self._suspect: Attempt | None = None  # that runs
        self._outage = Outage()
        self._runner = Runner(
            queue,
            self._tasks,
            outage=self._outage,
            default_timeout_seconds=default_timeout_seconds,
            settled=self._settled,
        )
        self._moved = asyncio.Event()  # a slot is free, or an attempt is over
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._resting: asyncio.Task[Any] | None = None  # what claims, while it waits
        self._clock = wiring.get(Clock) if wiring is not None and wiring.has(Clock) else SystemClock()
        self._fed_at = time.monotonic()  # when there last was something to run, or no room for it
        self._answered_at = self._fed_at  # when the queue last said what there is

    def stop(self, *, at_once: bool = False) -> None:
        """Claim nothing more and let `run` return when the running jobs have ended; may be called again.

        Args:
            at_once: Cancel the running jobs now and hand them back.
        """
        self._stopping.set()
        self._moved.set()
        if at_once:
            self._at_once.set()
        if self._resting is not None:
            self._resting.cancel()

    async def run(self) -> None:
        """Work until `stop`, then drain; being cancelled is the same as `stop(at_once=True)`."""
        self._fed_at = self._answered_at = time.monotonic()
        with self._wiring.active() if self._wiring else nullcontext():  # for every task that is started in here
            async with Heartbeat(self._queue, self._held.copy, self._lease_seconds).beating():
                claims = asyncio.create_task(self._claim())
                work = (self._runner.completions.run(), self._report(), self._stopping.wait())
                others = [asyncio.create_task(one) for one in work]
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
                    await asyncio.gather(*others, self._runner.close(), return_exceptions=True)
                    _log.info("jobs.worker_stopped", extra={"worker_id": self.worker_id, "left": len(self._held)})

    async def check(self) -> None:
        """Refuse when due jobs wait although this worker has had room for them, and got none, for `stall_seconds`.

        Jobs that a limit may hold back are no sign of that, as long as the queue answers.

        Raises:
            UnavailableError: Nothing is consumed here.
        """
        if self._stopping.is_set() or len(self._running) >= self._concurrency:
            return
        if time.monotonic() - self._fed_at < self._stall_seconds:
            return
        store = cast(JobStore, self._queue)
        late = [one for one in await store.queues() if one.oldest_due_age_seconds >= self._stall_seconds]
        served = [one for one in late if one.name in self._queues and not one.paused]
        if served and time.monotonic() - self._answered_at >= self._stall_seconds:
            raise UnavailableError(f"Jobs are due, and the queue has not answered for {self._stall_seconds:g} seconds.")
        for one in served:
            if not one.is_limited and await self._waits_unlimited(store, one.name):
                raise UnavailableError(
                    f"Jobs are due, and this worker has got none for {self._stall_seconds:g} seconds."
                )

    async def _waits_unlimited(self, store: JobStore, queue: str) -> bool:
        """Whether a job waits there that no limit holds back, among the newest."""
        due = self._clock.now() - timedelta(seconds=self._stall_seconds)
        waiting = await store.list(state=JobState.READY, queue=queue, limit=LIST_LIMIT_JOBS)
        return any(job.limit_key is None and job.available_at <= due for job in waiting)

    async def _claim(self) -> None:
        while not self._stopping.is_set():
            if (room := self._room()) <= 0:
                self._moved.clear()
                await self._moved.wait()
                continue
            try:
                jobs = await self._queue.reserve(
                    worker_id=self.worker_id, queues=self._queues, limit=room, lease_seconds=self._lease_seconds
                )
                for job in jobs:
                    attempt = Attempt(job, self._tasks.get(job.name), self._wiring)
                    self._held.add(attempt)
                    self._waiting.append(attempt)
                self._answered_at = time.monotonic()
                if jobs:
                    self._fed_at = self._answered_at
                    self._begin_waiting()
                if len(jobs) < room:
                    if jobs:
                        await asyncio.sleep(0)  # they begin first: to ask again takes as long as a short handler
                    await self._rest(self._queue.wait(self._poll_interval_seconds))
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs and counts itself
                await self._rest(asyncio.sleep(self._outage.failed(error)))

    def _room(self) -> int:
        """How many jobs to claim now: not a few at a time while there is something at hand."""
        if self._runner.completions.behind:
            return 0
        room = self._concurrency - len(self._running) + self._prefetch - len(self._waiting)
        return 0 if self._waiting and room <= self._prefetch // 2 else min(room, RESERVE_LIMIT_JOBS)

    async def _rest(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, but no longer than until `stop`."""
        if self._stopping.is_set():
            waiting.close()
            return
        resting = self._resting = asyncio.current_task()
        try:
            await waiting
        except asyncio.CancelledError:
            if resting is None or not self._stopping.is_set():
                raise
            resting.uncancel()
        finally:
            self._resting = None

    def _begin_waiting(self) -> None:
        draining = self._stopping.is_set()
        while self._waiting and (draining or len(self._running) < self._concurrency):
            attempt = self._waiting.popleft()
            if attempt.is_suspect:
                self._one_by_one(attempt)
            running = attempt.running = asyncio.create_task(self._runner.run(attempt, draining=draining))
            self._running.add(running)
            running.add_done_callback(self._ended)

    def _one_by_one(self, suspect: Attempt) -> None:
        """Tell a job that kills workers from those beside it: of these suspects one runs, and the others come later."""
        if self._suspect is None:
            self._suspect = suspect
        else:
            suspect.put_off_seconds = SUSPECT_PAUSE_SECONDS

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._fed_at = time.monotonic()
        self._begin_waiting()
        self._moved.set()

    def _settled(self, attempt: Attempt) -> None:
        self._held.discard(attempt)
        if self._suspect is attempt:
            self._suspect = None
        self._moved.set()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_SECONDS)
            for attempt in [one for one in self._held if one.started and not one.finishing]:
                try:
                    await self._runner.write_progress(attempt)
                except StaleAttemptError:
                    attempt.stop(Stop.LOST)
                except Exception as error:  # noqa: BLE001 - the worker outlives every outage, which logs itself
                    self._outage.failed(error)

    async def _drain(self, claims: asyncio.Task[None]) -> None:
        self._begin_waiting()  # to hand them back
        at_once = asyncio.create_task(self._at_once.wait())
        await self._all_ended(claims, self._drain_seconds, at_once)
        for attempt in self._held:
            attempt.stop(Stop.DRAIN)
        await self._all_ended(claims, CANCEL_GRACE_SECONDS)
        for task in (claims, *self._running):
            task.cancel()
        await self._all_ended(claims, CANCEL_GRACE_SECONDS)
        at_once.cancel()

    async def _all_ended(self, claims: asyncio.Task[None], seconds: float, *unless: asyncio.Task[Any]) -> None:
        until = time.monotonic() + seconds
        while (self._held or self._running or not claims.done()) and not any(one.done() for one in unless):
            if (left := until - time.monotonic()) <= 0:
                return
            self._moved.clear()
            moved = asyncio.create_task(self._moved.wait())
            pending = {moved, *unless} | (set() if claims.done() else {claims})
            await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()


def _check_terms(queues: Sequence[str], lease_seconds: float, worker_id: str | None) -> None:
    """Refuse what every claim would be refused for, which a running worker takes for an outage."""
    try:
        for name in queues:
            check_name(f"queue {name!r}", name)
        check_number("lease_seconds", lease_seconds, 0.001, DURATION_LIMIT_SECONDS)
        if worker_id is not None:
            check_name("worker id", worker_id)
    except ValidationError as error:
        raise ConfigurationError(f"A worker needs names and a lease that can be: {error.detail}") from None
    if len(set(queues)) > QUEUES_LIMIT:
        raise ConfigurationError(f"A worker needs fewer queues: it serves at most {QUEUES_LIMIT}.")


def _check_needs(tasks: Iterable[Task[..., Any]], wiring: Wiring | None) -> None:
    for task in tasks:
        needs = task.arguments
        if wiring is None and (needs.session or needs.provided):
            what = "a session" if needs.session else next(iter(needs.provided.values())).__name__
            raise ConfigurationError(f"Task {task.name} takes {what}: give the worker the app's wiring.")
        for name, kind in needs.provided.items():
            if wiring is not None and not wiring.has(kind):
                raise ConfigurationError(
                    f"Task {task.name}: a job cannot carry its {name!r}, and the app provides no {kind.__name__}."
                )
