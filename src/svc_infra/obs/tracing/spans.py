"""Spans: what a request, a job or a call to another service did, and for how long.

Whether a trace is kept is decided first, by its ids alone. Of one that is not, nothing is ever made: no span, no
attributes, no objects of OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from starlette.types import Scope

from svc_infra.obs.context import Context, Inner, current, enter, enter_span, leave, leave_span, span_id_here
from svc_infra.obs.http_metrics import METHODS, OTHER_METHOD, UNMATCHED
from svc_infra.obs.redact import redacted
from svc_infra.obs.traceparent import TraceParent, new_trace_id
from svc_infra.obs.tracing.sampling import Sampler
from svc_infra.wiring import current_wiring

if TYPE_CHECKING:
    from svc_infra.obs.tracing.sdk import Recorded, Recorder

MAX_TEXT_CHARS = 1024
"""Longest attribute; the rest is cut."""

Kind = Literal["internal", "server", "client", "consumer"]
Value: TypeAlias = "str | int | float | bool"
Attributes: TypeAlias = Mapping[str, Value]

_Begun: TypeAlias = "tuple[Tracing, Context, str]"

_SERVER_ERROR = 500
_FAILED = ("dead", "retried")


class Tracing:
    """The traces of one app.

    Args:
        sampler: Decides which are kept.
        recorder: Makes the spans of those.
        unwatched_paths: Requests to these begin no trace.
    """

    def __init__(self, sampler: Sampler, recorder: Recorder, *, unwatched_paths: Collection[str] = ()) -> None:
        self._sampler = sampler
        self._recorder = recorder
        self._unwatched_paths = frozenset(unwatched_paths)

    def decide(self, context: Context, parent: bool | None) -> bool:
        """Whether the trace of a request or job that begins is kept; its context says so from then on."""
        context.sampled = self._sampler.keeps(context.trace_id, parent)
        return context.sampled

    def server(self, scope: Scope, context: Context, caller: TraceParent | None) -> ServerSpan | None:
        """Begin the span of a request, and make its id the context's; None when its trace is not kept."""
        path: str = scope["path"]
        if caller is None and path.removeprefix(scope.get("root_path", "")) in self._unwatched_paths:
            context.sampled = False
            return None
        if not self.decide(context, None if caller is None else caller.sampled):
            return None
        recorded = self.begin(
            _method(scope),
            "server",
            _asked(scope),
            context.trace_id,
            "" if caller is None else caller.span_id,
        )
        context.span_id = recorded.span_id
        return ServerSpan(recorded)

    def begin(self, name: str, kind: Kind, attributes: Attributes, trace_id: str, parent_id: str) -> Recorded:
        """Begin a span of a trace that is kept.

        Args:
            name: What happens, in few different words.
            kind: Its place in the trace.
            attributes: What is known about it.
            trace_id: Its trace.
            parent_id: The span that it is part of; empty when the trace begins with it.
        """
        return self._recorder.begin(name, kind, cut({**attributes, **_acting()}), trace_id, parent_id)


class ServerSpan:
    """The span of one request."""

    __slots__ = ("_recorded",)

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        recorded.attach()

    def end(self, scope: Scope, route: str, status: int, error: BaseException | None) -> None:
        """End it, where it was begun.

        Args:
            scope: The request's.
            route: The template of the route that answered.
            status: Of the answer.
            error: What has made it one of the server's errors.
        """
        recorded = self._recorded
        recorded.detach()
        if route != UNMATCHED:
            recorded.rename(f"{_method(scope)} {route}")
            recorded.set("http.route", route)
        recorded.set("http.response.status_code", status)
        for name, value in _acting().items():  # known only since the request was identified
            recorded.set(name, value)
        if status >= _SERVER_ERROR or error is not None:
            recorded.fail(str(status) if error is None else _kind_of(error))
        recorded.end()


class Span:
    """A part of a trace, for a `with` block; does nothing where the trace is not kept."""

    __slots__ = ("_attributes", "_begun", "_kind", "_name", "_recorded", "_token", "_whole")

    def __init__(self, name: str, kind: Kind, attributes: Attributes, begun: _Begun | None) -> None:
        self._name = name
        self._kind: Kind = kind
        self._attributes = attributes
        self._begun = begun
        self._recorded: Recorded | None = None
        self._token: Token[Inner | None] | None = None
        self._whole: Token[Context | None] | None = None

    def set(self, name: str, value: Value) -> None:
        """Add what is known about it by now."""
        if self._recorded is not None:
            self._recorded.set(name, value[:MAX_TEXT_CHARS] if isinstance(value, str) else value)

    def fail(self, kind: str) -> None:
        """Say that it has failed, and how in one word; an exception that leaves the block says so itself."""
        if self._recorded is not None:
            self._recorded.fail(kind)

    def __enter__(self) -> Self:
        if self._begun is None:
            return self
        tracing, context, parent_id = self._begun
        if current() is not context:
            self._whole = enter(context)
        if context.sampled:
            recorded = tracing.begin(self._name, self._kind, self._attributes, context.trace_id, parent_id)
            if not parent_id:
                context.span_id = recorded.span_id
            self._token = enter_span(context, recorded.span_id)
            recorded.attach()
            self._recorded = recorded
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._recorded is not None and self._token is not None:
            if error is not None:
                self._recorded.fail(_kind_of(error))
            self._recorded.detach()
            self._recorded.end()
            leave_span(self._token)
        if self._whole is not None:
            leave(self._whole)


def span(name: str, *, kind: Kind = "internal", attributes: Attributes | None = None) -> Span:
    """A part of the current trace: `with span("price.calculate", attributes={"items": 3}): ...`.

    Outside of any request or job it begins a trace of its own. Does nothing in an app without tracing.

    Args:
        name: What happens, in few different words: ids belong into the attributes.
        kind: `client` for a call to another service.
        attributes: What is known about it; no secrets, as they are sent to the collector.
    """
    begun = _begun()
    return _NOT_KEPT if begun is None else Span(name, kind, attributes or {}, begun)


class JobSpan(Span):
    """One attempt at a job, as part of the trace of whoever enqueued it."""

    __slots__ = ()

    def ended(self, outcome: str) -> str:
        """Say how it has ended; gives that back."""
        self.set("svc_infra.job.outcome", outcome)
        if outcome in _FAILED:
            self.fail(outcome)
        return outcome


def job_span(task: str, queue: str, job_id: str, attempt: int) -> JobSpan:
    """The span of an attempt at a job, in its restored context.

    Source: OpenTelemetry's semantic conventions for messaging.
    """
    begun = _begun()
    if begun is None:
        return _JOB_NOT_KEPT
    attributes: Attributes = {
        "messaging.system": "svc_infra",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.message.id": job_id,
        "svc_infra.job.task": task,
        "svc_infra.job.attempt": attempt,
    }
    return JobSpan(f"process {task}", "consumer", attributes, begun)


_NOT_KEPT = Span("", "internal", {}, None)
_JOB_NOT_KEPT = JobSpan("", "consumer", {}, None)


def _begun() -> _Begun | None:
    """Who records a span that begins here, in which trace, and as part of which span; None where nobody does."""
    wiring = current_wiring()
    if wiring is None or not wiring.has(Tracing):
        return None
    tracing, context = wiring.get(Tracing), current()
    if not context.trace_id:  # outside of any request or job
        context = Context(trace_id=new_trace_id())
        tracing.decide(context, None)
        return tracing, context, ""
    if context.sampled is None:
        return (tracing, context, "") if tracing.decide(context, None) else None
    return (tracing, context, span_id_here(context)) if context.sampled else None


def _acting() -> Attributes:
    """Who acts, and as which user, where an admin acts as somebody else."""
    here = current()
    return {"enduser.id": here.principal_id, "svc_infra.actor.id": here.actor_id} if here.actor_id else {}


def sampled_trace() -> int | None:
    """The id of the current trace as a number, where it is kept."""
    context = current()
    return int(context.trace_id, 16) if context.sampled else None


def cut(attributes: Attributes) -> dict[str, Value]:
    """The attributes with long texts cut."""
    return {name: value[:MAX_TEXT_CHARS] if isinstance(value, str) else value for name, value in attributes.items()}


def _asked(scope: Scope) -> dict[str, Value]:
    """What is known of a request when it begins; of its URL without the query, which may hold secrets.

    Source: OpenTelemetry's semantic conventions for HTTP, stable.
    """
    asked: dict[str, Value] = {
        "http.request.method": method if (method := scope.get("method", "GET")) in METHODS else OTHER_METHOD,
        "url.scheme": scope["scheme"],
        "url.path": redacted(scope["path"][:MAX_TEXT_CHARS]),
        "network.protocol.version": scope.get("http_version", ""),
    }
    headers = dict(scope["headers"])
    if host := headers.get(b"host"):
        name, _, port = (text := host.decode("latin-1")).rpartition(":")
        asked["server.address"] = (name if port.isdecimal() else text).strip("[]")
        if port.isdecimal() and name:
            asked["server.port"] = int(port[:5])
    if agent := headers.get(b"user-agent"):
        asked["user_agent.original"] = agent.decode("latin-1")
    if client := scope.get("client"):
        asked["client.address"] = str(client[0])
    return asked


def _method(scope: Scope) -> str:
    """The first word of a span's name; that of a method which nobody knows says nothing about it."""
    method = scope.get("method", "WEBSOCKET")
    return method if method in METHODS or method == "WEBSOCKET" else "HTTP"


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
