"""The way of spans to a collector, which may be slow, broken, or not there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from threading import Event
from time import perf_counter

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from svc_infra import create_app
from svc_infra.config import AppSettings, OtelSettings, Settings
from svc_infra.obs import tracing
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.tracing import export
from svc_infra.obs.tracing.export import SpanQueue
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import call, lifespan
from tests.obs.log_capture import captured
from tests.obs.traced_app import KEPT


class Collector(SpanExporter):
    """Takes spans when it is let, and says what it is told to say."""

    def __init__(self, *answers: SpanExportResult | Exception) -> None:
        self.answers = list(answers)
        self.batches: list[int] = []
        self.go_on, self.asked = Event(), Event()
        self.go_on.set()
        self.closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.go_on.wait(30)
        self.batches.append(len(spans))
        answer = self.answers.pop(0) if self.answers else SpanExportResult.SUCCESS
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self) -> None:
        self.closed = True
        self.go_on.set()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def queue(collector: Collector, metrics: Metrics, max_spans: int = 2048) -> SpanQueue:
    made = SpanQueue(lambda: collector, metrics, max_spans=max_spans)
    made.start()
    return made


def counted(metrics: Metrics) -> dict[str, float]:
    found = {
        outcome: metrics.registry.get_sample_value("tracing_spans_total", {"outcome": outcome})
        for outcome in ("sent", "failed", "dropped")
    }
    return {outcome: value for outcome, value in found.items() if value}


SPAN = ReadableSpan("one")


def test_what_waits_is_sent_at_the_end(metrics: Metrics) -> None:
    collector = Collector()
    sending = queue(collector, metrics)
    for _ in range(export.BATCH_SPANS + 100):
        sending.on_end(SPAN)
    sending.close()
    assert sum(collector.batches) == export.BATCH_SPANS + 100
    assert max(collector.batches) <= export.BATCH_SPANS
    assert collector.closed
    assert counted(metrics) == {"sent": export.BATCH_SPANS + 100}


def test_a_slow_collector_costs_spans_and_no_memory(metrics: Metrics) -> None:
    collector = Collector()
    collector.go_on.clear()
    with captured() as output:
        sending = queue(collector, metrics, max_spans=600)
        for _ in range(export.BATCH_SPANS):
            sending.on_end(SPAN)
        assert collector.asked.wait(30)
        for _ in range(10_000):
            sending.on_end(SPAN)
        collector.go_on.set()
        sending.close()
        line = output.only("tracing.spans_lost")
    assert line["level"] == "WARNING"
    assert counted(metrics) == {"sent": export.BATCH_SPANS + 600, "dropped": 9400}


def test_a_collector_that_fails_is_counted_told_once_and_used_when_it_is_back(metrics: Metrics) -> None:
    collector = Collector(SpanExportResult.FAILURE, OSError("broken"), SpanExportResult.SUCCESS)
    with captured() as output:
        sending = queue(collector, metrics)
        for done in range(1, 4):
            sending.on_end(SPAN)
            sending._wake.set()
            while sum(counted(metrics).values()) < done:
                pass
        sending.close()
        assert output.only("tracing.spans_lost")["outcome"] == "failed"
        assert output.only("tracing.collector_back")["lost_spans"] == 2
    assert counted(metrics) == {"sent": 1, "failed": 2}


def test_a_collector_that_never_answers_holds_the_end_up_for_a_bounded_time(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CLOSE_SECONDS", 0.2)
    collector = Collector()
    collector.go_on.clear()
    sending = queue(collector, metrics)
    sending.on_end(SPAN)
    started = perf_counter()
    sending.close()
    assert perf_counter() - started < 5


async def test_a_collector_out_of_reach_costs_a_request_nothing() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    otel = OtelSettings(exporter_otlp_endpoint=endpoint, exporter_otlp_timeout=500)
    app = create_app(settings=Settings(app=AppSettings(env="test"), otel=otel))
    assert wiring_of(app).has(tracing.Tracing)

    @app.get("/")
    async def index() -> None:
        return None

    metrics = wiring_of(app).get(Metrics)
    with captured() as output:
        async with lifespan(app):
            for _ in range(50):
                assert (await call(app, headers=[KEPT])).status == 200
        lines = [line for line in output.lines if line["level"] in ("WARNING", "ERROR")]
    assert [line["message"] for line in lines] == ["tracing.spans_lost"]
    assert sum(counted(metrics).values()) == 50
    assert "sent" not in counted(metrics)
