"""Wires the room into an app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from svc_infra.db import AsyncDatabase, Outbox, OutboxMessage, OutboxRelay
from svc_infra.errors import ConfigurationError, UnavailableError
from svc_infra.jobs.context import JobContext
from svc_infra.jobs.easy import driver, queue_of, schedule_store
from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.jobs.redis.queue import OUTBOX_TOPIC, RedisJobQueue
from svc_infra.jobs.schedules.schedule import Schedule, every
from svc_infra.jobs.schedules.scheduler import Scheduler
from svc_infra.jobs.schedules.schedules import CATCH_UP_SECONDS, Schedules
from svc_infra.jobs.task import Task, by_name, task
from svc_infra.jobs.workers import Worker
from svc_infra.types import Clock
from svc_infra.wiring import Part, Phase, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

PURGE_INTERVAL_SECONDS = 300.0
PURGE_BATCH_JOBS = 1000
PURGE_LIMIT_BATCHES = 1000  # in one run
RETENTION_FLOOR_SECONDS = 2 * CATCH_UP_SECONDS  # a finished tick keeps other schedulers from repeating it
STOP_SECONDS = 15.0  # beyond the drain: for handlers to clean up, and the queue to be told

T = TypeVar("T")

_log = logging.getLogger(__name__)


class JobsPlan:
    """What the jobs room of one app will run; rooms add to it until the app starts.

    Attributes:
        queue: Given by whoever called `add_jobs`; None for the one that the settings ask for.
        worker, scheduler: Whether one runs while the app does, in this process.
    """

    def __init__(self) -> None:
        self.queue: JobQueue | None = None
        self.worker = False
        self.scheduler = False
        self.tasks: dict[str, Task[..., Any]] = {}
        self.schedules: dict[str, Schedule] = {}

    def add(self, tasks: Iterable[Task[..., Any]], schedules: Iterable[Schedule]) -> None:
        """Add tasks and schedules; see `contribute_tasks`."""
        schedules = list(schedules)
        self.tasks = by_name([*self.tasks.values(), *tasks, *(one.task for one in schedules)])
        for one in schedules:
            if self.schedules.setdefault(one.name, one) is not one:
                raise ConfigurationError(f"Two schedules are called {one.name}: give one of them `name=`.")


def add_jobs(
    app: FastAPI,
    *,
    tasks: Iterable[Task[..., Any]] = (),
    schedules: Iterable[Schedule] = (),
    queue: JobQueue | None = None,
    worker: bool = True,
    scheduler: bool = True,
) -> None:
    """Give an app a queue, and a worker and a scheduler that live as long as it does.

    Handlers of the app enqueue with `await task.enqueue(...)`. Jobs that finished `JOBS_RETENTION_SECONDS` ago are
    deleted, except for the dead letter. A second call adds its tasks and schedules and changes nothing else.

    Args:
        app: The app; its settings are `JOBS_*`. The SQL queue needs `add_db`, called before or after.
        tasks: What the worker can run. The tasks of the schedules are among them.
        schedules: What runs when.
        queue: Instead of the one that `JOBS_DRIVER` asks for; whoever made it closes it.
        worker: Run jobs in this process, of the queue "default" and those that the tasks name. Otherwise
            `svc-infra jobs run` does, in another.
        scheduler: Store the jobs of the schedules from this process; any number of processes may.

    Raises:
        ConfigurationError: Two tasks or schedules have one name, or a task cannot be run. At start-up: the queue's
            database or `REDIS_URL` is missing.
    """
    contribute_tasks(app, tasks, schedules=schedules)
    wiring = wiring_of(app)
    plan = plan_of(wiring)
    if "jobs" in wiring.parts:
        return
    plan.queue, plan.worker, plan.scheduler = queue, worker, scheduler
    retention = {"older_than_seconds": max(wiring.settings.jobs.retention_seconds, RETENTION_FLOOR_SECONDS)}
    plan.add([], [every(PURGE_INTERVAL_SECONDS, purge_finished, retention)])
    _relay_outbox(wiring, plan)
    runners = _Runners(wiring, plan)
    wiring.add(Part("jobs", lambda: _queueing(wiring, plan), check=lambda: _answering(wiring), after=("db",)))
    wiring.add(Part("worker", runners.run, check=runners.check, after=("jobs",), uses_app=True))


def contribute_tasks(app: FastAPI, tasks: Iterable[Task[..., Any]], *, schedules: Iterable[Schedule] = ()) -> None:
    """Let the app's worker run these tasks, and its scheduler these schedules; before or after `add_jobs`.

    Raises:
        ConfigurationError: Another task or schedule has the same name, a task cannot be run, or the app has started.
    """
    wiring = wiring_of(app)
    if wiring.phase not in (Phase.NEW, Phase.STOPPED):
        raise ConfigurationError("Tasks were added after the app started: add them before.")
    plan_of(wiring).add(tasks, schedules)


def plan_of(wiring: Wiring) -> JobsPlan:
    """What the jobs room of this app will run."""
    if not wiring.has(JobsPlan):
        wiring.provide(JobsPlan, JobsPlan())
    return wiring.get(JobsPlan)


def worker_of(wiring: Wiring, *, queues: Sequence[str] | None = None, concurrency: int | None = None) -> Worker:
    """A worker for the tasks of a started app.

    Args:
        queues: Those to serve; "default" and the queues of the tasks when left out.
        concurrency: `JOBS_CONCURRENCY` when left out.
    """
    jobs = wiring.settings.jobs
    if queues is None:
        queues = sorted({"default", *(one.queue for one in plan_of(wiring).tasks.values())})
    return Worker(
        wiring.get(JobQueue),
        plan_of(wiring).tasks.values(),
        wiring=wiring,
        queues=queues,
        concurrency=jobs.concurrency if concurrency is None else concurrency,
        lease_seconds=jobs.lease_seconds,
        poll_interval_seconds=jobs.poll_interval_seconds,
        drain_seconds=jobs.drain_seconds,
        default_timeout_seconds=jobs.timeout_seconds,
        prefetch=jobs.prefetch,
        stall_seconds=jobs.stall_seconds,
    )


@task(name="jobs.purge")
async def purge_finished(older_than_seconds: float, context: JobContext) -> int:
    """Delete the jobs that finished longer ago than this; returns how many."""
    store = context.get(JobStore)
    purged = 0
    for _ in range(PURGE_LIMIT_BATCHES):
        batch = await store.purge(older_than_seconds=older_than_seconds, limit=PURGE_BATCH_JOBS)
        purged += batch
        if batch < PURGE_BATCH_JOBS:
            break
    return purged


@asynccontextmanager
async def _queueing(wiring: Wiring, plan: JobsPlan) -> AsyncIterator[None]:
    queue = plan.queue
    db, outbox, clock = _given(wiring, AsyncDatabase), _given(wiring, Outbox), _given(wiring, Clock)
    if queue is None:
        queue = queue_of(wiring.settings, db=db, outbox=outbox, clock=clock)
    wiring.provide(JobQueue, queue)
    wiring.provide(JobStore, cast(JobStore, queue))  # every backend is both
    store = schedule_store(queue, db=db, clock=clock)
    scheduler = Scheduler(queue, plan.schedules.values(), tasks=plan.tasks.values(), store=store, clock=clock)
    wiring.provide(Scheduler, scheduler)
    wiring.provide(Schedules, scheduler.schedules)
    _relay_outbox(wiring, plan)
    try:
        yield
    finally:
        if plan.queue is None and isinstance(queue, RedisJobQueue):
            await queue.close()


def _relay_outbox(wiring: Wiring, plan: JobsPlan) -> None:
    """Let the outbox bring jobs to Redis; as early as there is a relay, which must know its topics when it starts."""
    if not (isinstance(plan.queue, RedisJobQueue) or (plan.queue is None and driver(wiring.settings) == "redis")):
        return
    if wiring.has(OutboxRelay) and OUTBOX_TOPIC not in (relay := wiring.get(OutboxRelay)).topics:

        async def store(message: OutboxMessage) -> None:
            await cast(RedisJobQueue, wiring.get(JobQueue)).relay(message)

        relay.register(OUTBOX_TOPIC, store)


async def _answering(wiring: Wiring) -> None:
    await wiring.get(JobStore).get("readiness")


class _Runners:
    """The worker and the scheduler of a running app."""

    def __init__(self, wiring: Wiring, plan: JobsPlan) -> None:
        self._wiring = wiring
        self._plan = plan
        self._runners: list[Worker | Scheduler] = []
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Work and schedule in the background."""
        wiring, plan = self._wiring, self._plan
        runners: list[Worker | Scheduler] = [worker_of(wiring)] if plan.worker else []
        if plan.scheduler:
            runners.append(wiring.get(Scheduler))
        self._runners = runners
        with wiring.active():
            self._tasks = [asyncio.create_task(one.run()) for one in runners]
        try:
            yield
        finally:
            for one in runners:
                one.stop()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=wiring.settings.jobs.drain_seconds + STOP_SECONDS)
            for running in self._tasks:
                running.cancel()
            for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    _log.error("jobs.runner_failed", exc_info=ended)

    async def check(self) -> None:
        """Refuse when one of them has ended by itself, or gets nothing of what is due."""
        if any(one.done() for one in self._tasks):
            raise UnavailableError("The worker or the scheduler has stopped.")
        for one in self._runners:
            if isinstance(one, Worker):
                await one.check()


def _given(wiring: Wiring, kind: type[T]) -> T | None:
    return wiring.get(kind) if wiring.has(kind) else None
