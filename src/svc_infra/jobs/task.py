"""Functions that run as jobs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import WRAPPER_ASSIGNMENTS, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from svc_infra.errors import ConfigurationError
from svc_infra.jobs.arguments import Arguments
from svc_infra.jobs.job import JobRequest, Limit, Unique
from svc_infra.jobs.queue import JobQueue
from svc_infra.wiring import current_wiring

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from svc_infra.jobs.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Task(Generic[P, R]):
    """A function that runs as a job, made by `@task`; calling it runs the function here and now.

    Attributes:
        function: What runs: in the event loop when it is async, else in a thread, or with `cpu` in a process.
        name, queue, max_attempts, timeout_seconds, priority, backoff_seconds, retry, unique, limit, cpu: As given to
            `task`.
    """

    function: Callable[P, R]
    name: str
    queue: str = "default"
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    backoff_seconds: float | None = None
    retry: RetryPolicy | None = None
    unique: Unique | None = None
    limit: Limit | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.queue:
            raise ConfigurationError("A task needs a name and a queue.")
        for limit in ("max_attempts", "timeout_seconds", "backoff_seconds"):
            value = getattr(self, limit)
            if value is not None and value <= 0:
                raise ConfigurationError(f"Task {self.name}: {limit} is {value}; it must be above 0.")
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"Task {self.name} is a generator: a task returns once.")
        if self.cpu and (self.is_async or "<locals>" in self.function.__qualname__):
            raise ConfigurationError(
                f"Task {self.name}: a process runs a plain function of a module, and this is none."
            )
        self.__dict__.update({name: getattr(self.function, name, None) for name in WRAPPER_ASSIGNMENTS})
        self.__dict__["__wrapped__"] = self.function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @cached_property
    def is_async(self) -> bool:
        """Whether the function runs in the event loop."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def arguments(self) -> Arguments:
        """What the function takes; resolved on first use, when every name that its hints use is defined.

        Raises:
            ConfigurationError: See `Arguments`.
        """
        arguments = Arguments(self)
        for keyed in (self.unique, self.limit):
            if keyed is not None:
                arguments.check_key(keyed.key)
        return arguments

    def options(
        self,
        *,
        delay_seconds: float = 0.0,
        at: datetime | None = None,
        unique_key: str | None = None,
        unique: Unique | None = None,
        limit: Limit | None = None,
        job_id: str | None = None,
        session: AsyncSession | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        on: JobQueue | None = None,
    ) -> TaskCall:
        """How the next job is to be stored: `await send_mail.options(delay_seconds=60).enqueue(to="x")`.

        Args:
            delay_seconds: Not before this much later.
            at: Not before this time, instead of a delay.
            unique_key: Give back the job that holds this key instead of storing a second one.
            unique, limit: See `JobQueue.enqueue`; instead of the task's own.
            job_id: Chosen by the caller; storing the same id again changes nothing.
            session: Store it in this unit of work: gone with its rollback, visible with its commit.
            queue, priority, max_attempts, timeout_seconds: Instead of the task's own.
            on: The queue to store it on; by default that of the app whose request, job or script runs here.
        """
        stored = {
            "queue": self.queue if queue is None else queue,
            "priority": self.priority if priority is None else priority,
            "max_attempts": self.max_attempts if max_attempts is None else max_attempts,
            "timeout_seconds": self.timeout_seconds if timeout_seconds is None else timeout_seconds,
            "backoff_seconds": self.backoff_seconds,
            "delay_seconds": delay_seconds,
            "at": at,
            "unique_key": unique_key,
            "unique": unique,
            "limit": limit,
            "job_id": job_id,
        }
        return TaskCall(self, stored, session, on)

    async def enqueue(self, /, **arguments: Any) -> str:
        """Store a job that calls the function with these arguments.

        Returns:
            The job's id.

        Raises:
            ValidationError: The arguments do not fit the function's type hints; nothing is stored.
            ConfigurationError: No app is active here.
        """
        return await self.options().enqueue(**arguments)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[str]:
        """Store a job for each of these mappings of arguments: all of them or none.

        Returns:
            Their ids, in the same order.

        Raises:
            ValidationError, ConfigurationError: As `enqueue`; nothing is stored.
        """
        return await self.options().enqueue_many(calls)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"


@dataclass(frozen=True, slots=True)
class TaskCall:
    """A task and how its next job is to be stored; made by `Task.options`."""

    task: Task[..., Any]
    stored: Mapping[str, Any]
    session: AsyncSession | None = None
    on: JobQueue | None = None

    async def enqueue(self, /, **arguments: Any) -> str:
        """Store the job; see `Task.enqueue`."""
        payload = self.task.arguments.encode(arguments)
        return await self._queue().enqueue(self.task.name, payload, session=self.session, **self._options(payload))

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[str]:
        """Store the jobs; see `Task.enqueue_many`."""
        if self.stored["job_id"] is not None:
            raise ConfigurationError(f"Task {self.task.name}: many jobs cannot have one `job_id`.")
        payloads = [self.task.arguments.encode(arguments) for arguments in calls]
        jobs = [self.request(one) for one in payloads]
        return await self._queue().enqueue_many(jobs, session=self.session)

    def request(self, payload: Mapping[str, Any]) -> JobRequest:
        """The job that would be stored with this payload."""
        return JobRequest(name=self.task.name, payload=payload, **self._options(payload))

    def _options(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is stored with the job; the task's own keys are those of its arguments."""
        task, options = self.task, dict(self.stored)
        if task.unique is not None and options["unique"] is None and options["unique_key"] is None:
            options["unique"] = replace(task.unique, key=task.arguments.key(task.unique.key, payload))
        if task.limit is not None and options["limit"] is None:
            options["limit"] = replace(task.limit, key=task.arguments.key(task.limit.key, payload))
        return options

    def _queue(self) -> JobQueue:
        return self._current() if self.on is None else self.on

    def _current(self) -> JobQueue:
        if (wiring := current_wiring()) is None:
            raise ConfigurationError(
                f"Task {self.task.name} was enqueued outside of any app: do it in a request, in a job, "
                "in a `with wiring_of(app).active():` block, or name the queue with `.options(on=queue)`."
            )
        return wiring.get(JobQueue)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    name: str | None = None,
    *,
    queue: str = "default",
    max_attempts: int | None = None,
    timeout_seconds: float | None = None,
    priority: int = 0,
    backoff_seconds: float | None = None,
    retry: RetryPolicy | None = None,
    unique: Unique | None = None,
    limit: Limit | None = None,
    cpu: bool = False,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(name: Any = None, **options: Any) -> Any:
    """Make a function a task.

    Arguments are validated by the function's type hints, when a job is enqueued and again before it runs. A parameter
    annotated with `JobContext` receives the job's context, one annotated with `logging.Logger` a logger; one annotated
    with `AsyncSession` receives a unit of work that commits when the function returns, in one transaction with the
    job's own completion when both are in the same database. One annotated with any other class that JSON cannot
    express receives what the app's rooms share under that class.

    Args:
        name: Unique in an app; "<last part of the module>.<function>" when left out.
        queue: The named queue that its jobs wait in.
        max_attempts: After this many a job goes to the dead letter; the queue's default when left out.
        timeout_seconds: Longest run of one attempt; the worker's default when left out.
        priority: Higher runs first.
        backoff_seconds: The first retry's upper delay, doubled with each attempt; the queue's default when left out.
        retry: Seconds until the next attempt, or None to give up: by the error's type as in
            `{TimeoutError: 30.0, ValueError: None}`, where errors that are not named wait for the backoff, or as a
            function of the error and the number of the attempt.
        unique: Which jobs are the same: the key may name arguments, as in `Unique("invoice:{number}")`.
        limit: What jobs share: `Limit("mail:{customer}", concurrency=2)` runs at most two at a time for each customer.
        cpu: Run in a process of its own: for a plain function that computes for long. It is found again by its
            module and name, is given nothing but the job's arguments, and is killed when its time is up.

    Returns:
        The task; it can still be called like the function.

    Raises:
        ConfigurationError: An option is out of range.
    """
    if callable(name):
        return Task(name, _default_name(name))
    return lambda function: Task(function, name or _default_name(function), **options)


def by_name(tasks: Iterable[Task[..., Any]]) -> dict[str, Task[..., Any]]:
    """The tasks under their names, each checked to be runnable; the same task may come twice.

    Raises:
        ConfigurationError: Two tasks have one name, or a function's parameters cannot be stored in a job.
    """
    named: dict[str, Task[..., Any]] = {}
    for one in tasks:
        if named.setdefault(one.name, one) is not one:
            raise ConfigurationError(f"Two tasks are called {one.name}: give one of them another name.")
        _ = one.arguments
    return named


def _default_name(function: Callable[..., Any]) -> str:
    module = function.__module__.rpartition(".")[2]
    if module == "__main__":  # a worker that imports the same file would call it by the file's name
        module = Path(function.__code__.co_filename).stem
    return f"{module}.{function.__name__}"
