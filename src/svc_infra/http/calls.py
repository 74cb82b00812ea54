"""What is kept of a call to another service: its count, its time, and its span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import httpx2

from svc_infra.errors import SvcInfraError
from svc_infra.obs.context import current, span_id_here
from svc_infra.obs.http_metrics import METHODS, OTHER_METHOD
from svc_infra.obs.metrics import current_metrics
from svc_infra.obs.tracing import Span, TraceParent, make_traceparent, new_span_id, span

MAX_HOSTS = 50
"""Most hosts that the metrics tell apart; calls of further ones are counted under "other"."""

_REFUSED = 400


class Call:
    """A call that is being made."""

    __slots__ = ("_span", "code")

    def __init__(self, traced: Span) -> None:
        self._span = traced
        self.code = "cancelled"

    def answered(self, status: int) -> None:
        """Note the answer's status."""
        self.code = str(status)
        self._span.set("http.response.status_code", status)
        if status >= _REFUSED:
            self._span.fail(self.code)


@contextmanager
def measured(method: str, url: httpx2.URL) -> Iterator[Call]:
    """Count and time a call, and make it a span of the current trace.

    Of the URL only the host is shown: paths and queries hold other services' secrets.
    """
    host = url.raw_host.decode("ascii")
    asked = {"http.request.method": method, "url.scheme": url.scheme, "server.address": host}
    port = {} if url.port is None else {"server.port": url.port}
    started = perf_counter()
    with span(method, kind="client", attributes={**asked, **port}) as traced:
        call = Call(traced)
        try:
            yield call
        except SvcInfraError as error:
            call.code = error.code
            raise
        finally:
            _count(method if method in METHODS else OTHER_METHOD, host, call.code, perf_counter() - started)


def trace_headers() -> dict[str, str]:
    """The request id, and the trace as W3C Trace Context writes it."""
    context = current()
    headers = {"x-request-id": context.request_id} if context.request_id else {}
    if context.trace_id:
        place = TraceParent(context.trace_id, span_id_here(context) or new_span_id(), sampled=bool(context.sampled))
        headers["traceparent"] = make_traceparent(place)
    return headers


def _count(method: str, host: str, code: str, seconds: float) -> None:
    metrics, bounds = current_metrics(), {"host": MAX_HOSTS}
    metrics.family(
        "counter",
        "http_client_requests_total",
        ("method", "host", "code"),
        "Calls to other services.",
        max_values=bounds,
    ).add({"method": method, "host": host, "code": code}, 1)
    metrics.family(
        "histogram",
        "http_client_request_duration_seconds",
        ("method", "host"),
        "Time from the call to the last byte of its answer.",
        max_values=bounds,
    ).observe({"method": method, "host": host}, seconds)
