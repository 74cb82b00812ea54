"""Who and what the current request or job is, for logs, traces and the jobs that it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields
from math import inf
from operator import attrgetter
from time import monotonic

from svc_infra.obs.traceparent import TraceParent, make_traceparent, new_span_id, new_trace_id, parse_traceparent


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
    sampled: bool | None = None
    """Whether the trace is kept; None while nobody has decided that."""

    def known(self) -> dict[str, str]:
        """The facts that are known, for a log line."""
        known = {name: fact for name, fact in zip(FACTS, facts_of(self), strict=True) if fact}
        if (inner := _inner.get()) is not None and inner[0] is self:
            known["span_id"] = inner[1]
        return known

    def carried(self) -> dict[str, str]:
        """The facts that travel into a job or an event; of a trace that is kept also the span that they come from."""
        known = self.known()
        carried = {name: value for name, value in known.items() if name not in ("span_id", "job_id")}
        if self.sampled and "span_id" in known:
            carried[_TRACEPARENT] = make_traceparent(TraceParent(self.trace_id, known["span_id"], sampled=True))
        return carried


FACTS = tuple(field.name for field in fields(Context) if field.name not in ("client_ip", "deadline", "sampled"))
"""The names of the facts."""
facts_of: Callable[[Context], tuple[str, ...]] = attrgetter(*FACTS)
"""Every fact of a context, in the order of `FACTS`."""

_TRACEPARENT = "traceparent"
_RESTORED = frozenset(FACTS) - {"job_id"}
_current: ContextVar[Context | None] = ContextVar("svc_infra_context", default=None)

Inner = tuple[Context, str]
"""A context, and the id of the span inside of it that the current task is in."""
_inner: ContextVar[Inner | None] = ContextVar("svc_infra_span", default=None)


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


enter: Callable[[Context], Token[Context | None]] = _current.set
"""Make this the current context; give the token to `leave`. No function of ours, because every request calls it."""
leave: Callable[[Token[Context | None]], None] = _current.reset
"""Return to the context before `enter`."""


def span_id_here(context: Context) -> str:
    """The id of the span that the current task is in."""
    inner = _inner.get()
    return inner[1] if inner is not None and inner[0] is context else context.span_id


def enter_span(context: Context, span_id: str) -> Token[Inner | None]:
    """Make this the span that the current task is in; give the token to `leave_span`."""
    return _inner.set((context, span_id))


def leave_span(token: Token[Inner | None]) -> None:
    """Return to the span before `enter_span`."""
    _inner.reset(token)


@contextmanager
def restored(carried: Mapping[str, str], *, job_id: str = "") -> Iterator[Context]:
    """Run as the request that started this job did; one that comes without a trace begins its own."""
    context = Context(job_id=job_id)
    for name in carried.keys() & _RESTORED:
        setattr(context, name, carried[name])
    if context.trace_id:
        origin = parse_traceparent(carried.get(_TRACEPARENT, ""))
        context.sampled = origin is not None and origin.sampled
        context.span_id = new_span_id() if origin is None else origin.span_id
    else:
        context.trace_id, context.span_id = new_trace_id(), new_span_id()
    token = enter(context)
    try:
        yield context
    finally:
        leave(token)
