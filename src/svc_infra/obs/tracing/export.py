"""The way of spans to a collector: bounded, beside the requests, and never in their way."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping
from threading import Event, Thread
from time import monotonic

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import Metrics

BATCH_SPANS = 512
"""So many are sent at once, at most."""
SEND_SECONDS = 1.0
"""Longest wait of a span until it is sent."""
CLOSE_SECONDS = 5.0
"""Longest that the service's end waits for what is left to be sent; nothing where the collector was out of reach."""
LOG_INTERVAL_SECONDS = 60.0
"""The least time between two lines about a collector that is out of reach."""


def otlp_exporter(endpoint: str, headers: str, timeout_seconds: float) -> SpanExporter:
    """Sends spans by OTLP over HTTP, as protobuf.

    Args:
        endpoint: The URL of the traces.
        headers: As in `OTEL_EXPORTER_OTLP_HEADERS`.
        timeout_seconds: Longest attempt, its retries included.
    """
    # It would write several lines about each failure; `SpanQueue` counts them and writes one.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)
    sent: Mapping[str, str] = parse_env_headers(headers, liberal=True)
    return OTLPSpanExporter(endpoint=endpoint, headers=dict(sent), timeout=timeout_seconds)


class SpanQueue(SpanProcessor):
    """Takes spans that have ended, and lets a thread send them.

    Args:
        connect: Makes what sends them, when the queue starts.
        metrics: Counts them: `tracing_spans_total` by `outcome`, which is `sent`, `failed` or `dropped`.
        max_spans: Most that wait; further ones are dropped.
    """

    def __init__(self, connect: Callable[[], SpanExporter], metrics: Metrics, *, max_spans: int) -> None:
        self._connect = connect
        self._metrics = metrics
        self._max_spans = max_spans
        self._waiting: deque[ReadableSpan] = deque()
        self._wake, self._closing = Event(), Event()
        self._lost = 0
        self._silent_until = 0.0
        self._thread: Thread | None = None
        self._exporter: SpanExporter
        self._fails: bool

    def start(self) -> None:
        """Begin to send."""
        self._closing.clear()
        self._fails = False
        self._exporter = self._connect()
        self._thread = Thread(target=self._run, name="span-queue", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span, or drop and count it."""
        if len(self._waiting) >= self._max_spans:
            self._lose(1, "dropped")
            return
        self._waiting.append(span)
        if len(self._waiting) >= BATCH_SPANS:
            self._wake.set()

    def close(self) -> None:
        """Send what is left and end."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(0.0 if self._fails else CLOSE_SECONDS)
        self._exporter.shutdown()  # it gives up what it may be trying
        left = len(self._waiting)
        self._waiting.clear()
        if left:
            self._lose(left, "dropped")

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(SEND_SECONDS)
            self._wake.clear()
            self._send()

    def _send(self) -> None:
        while self._waiting and not (self._fails and self._closing.is_set()):
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_SPANS))]
            try:
                sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
            except Exception as error:  # noqa: BLE001 - whatever it is, these spans are lost; `_lose` logs and counts it
                self._lose(len(batch), "failed", error)
                self._fails = True
                continue
            if not sent:
                self._lose(len(batch), "failed")
            else:
                self._metrics.increment("tracing.spans", len(batch), outcome="sent")
                if self._fails:
                    logger.info("tracing.collector_back", lost_spans=self._lost)
                    self._lost, self._silent_until = 0, 0.0
            self._fails = not sent

    def _lose(self, count: int, outcome: str, error: Exception | None = None) -> None:
        self._metrics.increment("tracing.spans", count, outcome=outcome)
        self._lost += count
        if monotonic() >= self._silent_until and not sys.is_finalizing():
            self._silent_until = monotonic() + LOG_INTERVAL_SECONDS
            logger.warning("tracing.spans_lost", exc_info=error, outcome=outcome, lost_spans=self._lost)
