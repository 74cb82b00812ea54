"""Traces: which calls belong together, across services and jobs.

- `spans`: `span`, `Tracing`; what is recorded, and what is not · `sampling`: which traces are kept
- `sql`: the statements of a trace, without their values
- `sdk`: spans as OpenTelemetry has them · `export`: their way to a collector; both need the extra `otel`
- `obs.traceparent`: the header (W3C Trace Context)
"""

from svc_infra.obs.traceparent import TraceParent, make_traceparent, new_span_id, new_trace_id, parse_traceparent
from svc_infra.obs.tracing.spans import Span, Tracing, job_span, span

__all__ = [
    "Span",
    "TraceParent",
    "Tracing",
    "job_span",
    "make_traceparent",
    "new_span_id",
    "new_trace_id",
    "parse_traceparent",
    "span",
]
