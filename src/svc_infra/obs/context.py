"""Who and what the current request or job is, for logs, traces and the jobs that it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields
from math import inf
from time import monotonic


@dataclass(slots=True)
class Context:
    """Facts about the current unit of work; empty strings where unknown. Shared by all tasks of one request."""

    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    tenant_id: str = ""
    principal_id: str = ""
    api_key_id: str = ""
    actor_id: str = ""
    job_id: str = ""
    client_ip: str = ""
    """Where the request comes from. Neither logged with every line nor carried into jobs, which come from nowhere."""
    deadline: float = inf
    """When the answer must have begun, in the seconds of `time.monotonic`; infinite where it may take any time."""

    def known(self) -> dict[str, str]:
        """The facts that are known, for a log line."""
        return {name: value for name in _FIELDS if (value := getattr(self, name))}

    def carried(self) -> dict[str, str]:
        """The facts that travel into a job or an event."""
        return {name: value for name, value in self.known().items() if name not in ("span_id", "job_id")}


_FIELDS = tuple(field.name for field in fields(Context) if field.name not in ("client_ip", "deadline"))
_current: ContextVar[Context | None] = ContextVar("svc_infra_context", default=None)


def current() -> Context:
    """The current context; outside of any request or job a fresh, empty one."""
    return _current.get() or Context()


def seconds_left() -> float:
    """How long the current handler may still take until its answer begins; infinite where it may take any time."""
    return current().deadline - monotonic()


def allow_seconds(seconds: float) -> None:
    """Give the current request's handler at least this long from now, such as for a report that takes minutes."""
    context = current()
    context.deadline = max(context.deadline, monotonic() + seconds)


def enter(context: Context) -> Token[Context | None]:
    """Make this the current context; give the token to `leave`."""
    return _current.set(context)


def leave(token: Token[Context | None]) -> None:
    """Return to the context before `enter`."""
    _current.reset(token)


@contextmanager
def restored(carried: Mapping[str, str], *, job_id: str = "") -> Iterator[Context]:
    """Run as the request that started this job did."""
    context = Context(job_id=job_id)
    for name in carried.keys() & set(_FIELDS) - {"job_id"}:
        setattr(context, name, carried[name])
    token = enter(context)
    try:
        yield context
    finally:
        leave(token)
