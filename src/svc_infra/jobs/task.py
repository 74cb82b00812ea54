"""Functions that run as jobs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import WRAPPER_ASSIGNMENTS, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    NoReturn,
    NotRequired,
    ParamSpec,
    TypeVar,
    get_origin,
    get_type_hints,
    overload,
)

import orjson
import pydantic
from pydantic_core import to_jsonable_python
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs.job import Job, check_number
from svc_infra.jobs.queue import JobQueue
from svc_infra.wiring import Wiring, current_wiring

if TYPE_CHECKING:
    from svc_infra.jobs.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True)
class JobContext:
    """The job that a handler runs for; a parameter annotated with this class receives it.

    Attributes:
        job: The job as it was claimed.
        wiring: The app that the worker belongs to, where there is one.
        cancelled: Set when the attempt should end: its time is up, its lease is lost or the worker drains. Async
            handlers are cancelled as well; functions in a thread look here, and raise to stop early.
        reported: The progress last reported: done and total.
    """

    job: Job
    wiring: Wiring | None = None
    cancelled: bool = False
    reported: tuple[int, int] | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.job.attempts

    @property
    def token(self) -> str:
        """The attempt's fencing token: an idempotency key for calls to other services."""
        return self.job.token or ""

    def progress(self, done: int, total: int = 0) -> None:
        """Report how far the attempt is; the worker stores the latest report about twice a second.

        Args:
            done, total: How much is done of how much; a total of 0 when that is unknown.

        Raises:
            ValidationError: They are no counts.
        """
        self.reported = (check_number("progress", done, 0, 2**53), check_number("progress", total, 0, 2**53))

    def get(self, kind: type[T]) -> T:
        """An object that the app's rooms share.

        Raises:
            ConfigurationError: There is no such object, or the worker runs outside of an app.
        """
        if self.wiring is None:
            raise ConfigurationError(f"This worker has no {kind.__name__}: give it the app's wiring.")
        return self.wiring.get(kind)

    @property
    def db(self) -> AsyncDatabase:
        """The app's database, for handlers that make their own units of work."""
        return self.get(AsyncDatabase)


@dataclass(frozen=True, eq=False)
class Task(Generic[P, R]):
    """A function that runs as a job, made by `@task`; calling it runs the function here and now.

    Attributes:
        function: What runs, in the event loop when it is async, else in a thread.
        name, queue, max_attempts, timeout_seconds, priority, backoff_seconds, retry: As given to `task`.
    """

    function: Callable[P, R]
    name: str
    queue: str = "default"
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    backoff_seconds: float | None = None
    retry: RetryPolicy | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.queue:
            raise ConfigurationError("A task needs a name and a queue.")
        for limit in ("max_attempts", "timeout_seconds", "backoff_seconds"):
            value = getattr(self, limit)
            if value is not None and value <= 0:
                raise ConfigurationError(f"Task {self.name}: {limit} is {value}; it must be above 0.")
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"Task {self.name} is a generator: a task returns once.")
        self.__dict__.update({name: getattr(self.function, name, None) for name in WRAPPER_ASSIGNMENTS})
        self.__dict__["__wrapped__"] = self.function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether the function runs in the event loop."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def arguments(self) -> Arguments:
        """What the function takes; resolved on first use, when every name that its hints use is defined.

        Raises:
            ConfigurationError: See `Arguments`.
        """
        return Arguments(self)

    def options(
        self,
        *,
        delay_seconds: float = 0.0,
        unique_key: str | None = None,
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
            unique_key: Give back the job that holds this key instead of storing a second one.
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
            "unique_key": unique_key,
            "job_id": job_id,
            "session": session,
        }
        return TaskCall(self, stored, on)

    async def enqueue(self, /, **arguments: Any) -> str:
        """Store a job that calls the function with these arguments.

        Returns:
            The job's id.

        Raises:
            ValidationError: The arguments do not fit the function's type hints; nothing is stored.
            ConfigurationError: No app is active here.
        """
        return await self.options().enqueue(**arguments)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"


@dataclass(frozen=True, slots=True)
class TaskCall:
    """A task and how its next job is to be stored; made by `Task.options`."""

    task: Task[..., Any]
    stored: Mapping[str, Any]
    on: JobQueue | None = None

    async def enqueue(self, /, **arguments: Any) -> str:
        """Store the job; see `Task.enqueue`."""
        payload = self.task.arguments.encode(arguments)
        queue = self._current() if self.on is None else self.on
        return await queue.enqueue(self.task.name, payload, **self.stored)

    def _current(self) -> JobQueue:
        if (wiring := current_wiring()) is None:
            raise ConfigurationError(
                f"Task {self.task.name} was enqueued outside of any app: do it in a request, in a job, "
                "in a `with wiring_of(app).active():` block, or name the queue with `.options(on=queue)`."
            )
        return wiring.get(JobQueue)


class Arguments:
    """What a task's function takes: the arguments that its jobs carry and those that the worker injects.

    Args:
        task: The task whose function to inspect.

    Raises:
        ConfigurationError: A parameter is variadic or positional-only, a type hint cannot be resolved or validated,
            or a function in a thread asks for a session.
    """

    def __init__(self, task: Task[..., Any]) -> None:
        self._name = task.name
        self.context: str | None = None
        self.session: str | None = None
        hints = self._hints(task.function)
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(task.function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                self._refuse(f"parameter {parameter.name!r} cannot be given by name")
            hint = hints.get(parameter.name, Any)
            injected = hint.__origin__ if get_origin(hint) is Annotated else hint
            if injected is JobContext:
                self.context = parameter.name
            elif injected is AsyncSession:
                self.session = parameter.name
            else:
                fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
        if self.session and not task.is_async:
            self._refuse("an AsyncSession needs an async function; use JobContext.db from one")
        kind: Any = TypedDict("Arguments", fields)  # type: ignore[misc]
        try:
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(pydantic.with_config(extra="forbid")(kind))
        except pydantic.PydanticUserError as error:
            self._refuse(str(error).partition("\n")[0])

    def encode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The payload for these arguments.

        Raises:
            ValidationError: They do not fit the type hints, or are no JSON.
        """
        try:
            payload = self._adapter.dump_python(self._adapter.validate_python(dict(arguments)), mode="json")
        except pydantic.ValidationError as error:
            raise self._invalid(error) from None  # its text would show values
        except ValueError as error:
            raise ValidationError(f"{self._name}: an argument cannot be stored as JSON.") from error
        return payload  # type: ignore[no-any-return]

    def decode(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in this payload.

        Raises:
            ValidationError: They do not fit the type hints.
        """
        try:
            return self._adapter.validate_json(orjson.dumps(dict(payload)))  # type: ignore[no-any-return]
        except pydantic.ValidationError as error:
            raise self._invalid(error) from None  # its text would show values

    def _hints(self, function: Callable[..., Any]) -> dict[str, Any]:
        inner = inspect.unwrap(function)  # a decorated function's hints name things of the module it was written in
        hints = {name: hint for name, hint in inspect.get_annotations(inner).items() if name != "return"}
        try:
            return get_type_hints(
                SimpleNamespace(__annotations__=hints), getattr(inner, "__globals__", {}), include_extras=True
            )
        except NameError as error:
            self._refuse(f"its type hint {error.name} is not defined at run time (is it only imported for typing?)")

    def _invalid(self, error: pydantic.ValidationError) -> ValidationError:
        problems = [
            {"loc": list(problem["loc"]), "detail": problem["msg"]}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        named = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['detail']}" for one in problems[:3])
        return ValidationError(f"{self._name}: {named}", errors=problems)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigurationError(f"Task {self._name}: {reason}.")


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
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(name: Any = None, **options: Any) -> Any:
    """Make a function a task.

    Arguments are validated by the function's type hints, when a job is enqueued and again before it runs. Parameters
    annotated with `JobContext` receive the job's context; one annotated with `AsyncSession` receives a unit of work
    that commits when the function returns, in one transaction with the job's own completion when both are in the
    same database.

    Args:
        name: Unique in an app; "<last part of the module>.<function>" when left out.
        queue: The named queue that its jobs wait in.
        max_attempts: After this many a job goes to the dead letter; the queue's default when left out.
        timeout_seconds: Longest run of one attempt; the worker's default when left out.
        priority: Higher runs first.
        backoff_seconds: The first retry's upper delay, doubled with each attempt; the queue's default when left out.
        retry: Given the error and the number of the attempt: seconds until the next one, or None to give up.

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


def storable(task: Task[..., Any], result: Any) -> Any:
    """What a task returned, as JSON.

    Raises:
        ValidationError: It is none.
    """
    try:
        return to_jsonable_python(result)
    except ValueError as error:
        raise ValidationError(f"{task.name} returned something that cannot be stored as JSON.") from error


def start_thread(function: Callable[[], Any]) -> asyncio.Future[tuple[bool, Any]]:
    """Run a function in a thread of its own; the future tells whether it returned, and what it returned or raised.

    A daemon thread: one that hangs must not keep a process alive whose worker has given it up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[bool, Any]] = loop.create_future()
    context = copy_context()

    def run() -> None:
        try:
            ended = (True, context.run(function))
        except BaseException as error:  # noqa: BLE001 - raised again where the attempt awaits it
            ended = (False, error)
        with suppress(RuntimeError):  # the loop is closed: the worker has given the attempt up
            loop.call_soon_threadsafe(future.set_result, ended)

    threading.Thread(target=run, name="svc-infra-job", daemon=True).start()
    return future


def _default_name(function: Callable[..., Any]) -> str:
    module = function.__module__.rpartition(".")[2]
    if module == "__main__":  # a worker that imports the same file would call it by the file's name
        module = Path(function.__code__.co_filename).stem
    return f"{module}.{function.__name__}"
