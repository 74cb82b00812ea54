"""Spans as OpenTelemetry's SDK records them; the only file, with `export`, that needs the extra `otel`."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token

from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from svc_infra import __version__
from svc_infra.obs.tracing.spans import Kind, Value

_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Recorder:
    """Makes spans, all of them of traces that are kept.

    Args:
        service: The service's name; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` may add to it.
        release: The release that runs.
        environment: Where it runs.
    """

    def __init__(self, *, service: str, release: str, environment: str) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # who asks for a span has decided
            resource=Resource.create(
                {
                    "service.name": service,
                    "service.version": release,
                    "service.instance.id": os.urandom(16).hex(),
                    "deployment.environment.name": environment,
                }
            ),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self._tracer = self._provider.get_tracer("svc_infra", __version__)

    def send_to(self, processor: SpanProcessor) -> None:
        """Hand every span that ends to this, too."""
        self._provider.add_span_processor(processor)

    def begin(self, name: str, kind: Kind, attributes: dict[str, Value], trace_id: str, parent_id: str) -> Recorded:
        """Begin a span; see `Tracing.begin`."""
        if parent_id:
            place = SpanContext(int(trace_id, 16), int(parent_id, 16), is_remote=True, trace_flags=_SAMPLED)
            parent = NonRecordingSpan(place)
            span = self._tracer.start_span(name, set_span_in_context(parent, Context()), _KINDS[kind], attributes)
        else:
            token = self._ids.trace_id.set(int(trace_id, 16))
            try:
                span = self._tracer.start_span(name, Context(), _KINDS[kind], attributes)
            finally:
                self._ids.trace_id.reset(token)
        return Recorded(span)


class Recorded:
    """One span that is being recorded."""

    __slots__ = ("_span", "_token", "span_id")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None
        self.span_id = f"{span.get_span_context().span_id:016x}"

    def attach(self) -> None:
        """Let instrumentation of other libraries find it."""
        self._token = attach(set_span_in_context(self._span))

    def detach(self) -> None:
        """End what `attach` began, in the same task."""
        if self._token is not None:
            detach(self._token)

    def rename(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def set(self, name: str, value: Value) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)

    def fail(self, kind: str) -> None:
        """Say that it has failed."""
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attribute("error.type", kind)

    def end(self) -> None:
        """End it."""
        self._span.end()


class _Ids(RandomIdGenerator):
    """Random ids, but for the trace that a request was given before anybody knew whether it is kept."""

    def __init__(self) -> None:
        self.trace_id: ContextVar[int | None] = ContextVar("svc_infra_trace_id", default=None)

    def generate_trace_id(self) -> int:
        """The trace's id."""
        return self.trace_id.get() or super().generate_trace_id()
