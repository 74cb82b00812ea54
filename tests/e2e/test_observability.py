"""A real service, a real client, a collector of traces and a reader of metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

WAIT_SECONDS = 60.0
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVICE = """
import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra import create_app
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.http import HttpClient, add_http
from svc_infra.jobs import task
from svc_infra.jobs.add import add_jobs
from svc_infra.obs.add import add_observability
from svc_infra.observability import logger
from svc_infra.wiring import current_wiring

@task
async def confirm(session: AsyncSession, order: int) -> None:
    logger.info("order.confirmed")
    await session.execute(text("UPDATE orders SET name = 'secret' WHERE id = :id"), {"id": order})

app = create_app(name="shop", release="7")
add_db(app)
add_http(app)
add_jobs(app, tasks=[confirm])
add_observability(app, route_classifier=lambda path: "internal" if path.startswith("/_ops") else "public")

@app.post("/orders/{order}")
async def create(order: int) -> str:
    db, http = current_wiring().get(AsyncDatabase), current_wiring().get(HttpClient)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE IF NOT EXISTS orders (id int, name text)"))
        await session.execute(text("INSERT INTO orders VALUES (:id, 'secret')"), {"id": order})
    logger.info("order.stored")
    answer = await http.request("GET", os.environ["STOCK"])
    return answer.body.decode() + " " + await confirm.enqueue(order=order)
"""


@dataclass
class Collector:
    """Receives traces by OTLP over HTTP, and is the other service that the first one calls."""

    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Collector]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers.append(dict(self.headers))
                for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append({pair.key: pair.value.string_value for pair in one.resource.attributes})
                    collector.spans.extend(span for scope in one.scope_spans for span in scope.spans)
                self.answer(ExportTraceServiceResponse().SerializeToString())

            def do_GET(self) -> None:
                self.answer(self.headers["traceparent"].encode())

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


@contextmanager
def service(tmp_path: Path, collector: str) -> Iterator[tuple[str, Path]]:
    (tmp_path / "shop.py").write_text(SERVICE)
    log = tmp_path / "log"
    own = {
        **os.environ,
        "APP_ENV": "test",
        "SQL_URL": f"sqlite:///{tmp_path}/shop.db",
        "STOCK": f"{collector}/stock?token=secret",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=of%20ours",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_RESOURCE_ATTRIBUTES": "team=sales",
    }
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--app-dir", str(tmp_path), "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=own, cwd=tmp_path, stderr=errors)
    try:
        until, begun = monotonic() + WAIT_SECONDS, None
        while begun is None and monotonic() < until:
            assert process.poll() is None, log.read_text()
            begun = re.search(r"running on (http://[\d.:]+)", log.read_text())
        assert begun is not None, log.read_text()
        yield begun[1], log
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collector, dict[str, str], list[dict[str, Any]]]:
    """What the collector has received, the answers by what was asked, and the log."""
    answers: dict[str, str] = {}
    folder = tmp_path_factory.mktemp("shop")
    with Collector().running() as collector:
        with service(folder, collector.url) as (url, log), httpx2.Client(base_url=url, timeout=WAIT_SECONDS) as client:
            traced = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
            answers["order"] = client.post("/orders/7", headers=traced).json()
            answers["unkept"] = client.post("/orders/8", headers={"traceparent": f"00-{'a' * 32}-{CALLER}-00"}).json()
            answers["begun"] = client.post("/orders/9").json()
            until = monotonic() + WAIT_SECONDS
            while log.read_text().count("order.confirmed") < 3 and monotonic() < until:
                pass
            assert client.get("/nothing").status_code == 404
            answers["text"] = client.get("/metrics").text
            accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3"
            answers["openmetrics"] = client.get("/metrics", headers={"accept": accept}).text
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return collector, answers, lines


def test_one_trace_holds_the_request_its_statements_its_call_and_its_job(
    observed: tuple[Collector, dict[str, str], list[dict[str, Any]]],
) -> None:
    collector, answers, _ = observed
    spans = {span.name: span for span in collector.spans}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    server, client = spans["POST /orders/{order}"], spans["GET"]
    (job,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_CONSUMER]
    assert [span.kind for span in collector.spans].count(Span.SPAN_KIND_SERVER) == 1
    assert server.parent_span_id.hex() == CALLER
    assert client.parent_span_id == job.parent_span_id == server.span_id
    called, job_id = answers["order"].split()
    assert called == f"00-{TRACE}-{client.span_id.hex()}-01"
    assert attributes(job)["messaging.message.id"] == job_id
    statements = {text: span for span in collector.spans if (text := attributes(span).get("db.query.text"))}
    assert statements["INSERT INTO orders VALUES (?, ?)"].parent_span_id == server.span_id
    assert statements["UPDATE orders SET name = ? WHERE id = ?"].parent_span_id == job.span_id
    assert attributes(server)["http.response.status_code"] == 200
    assert all(span.status.code != Status.STATUS_CODE_ERROR for span in collector.spans)
    assert b"secret" not in b"".join(span.SerializeToString() for span in collector.spans)
    assert server.start_time_unix_nano <= client.start_time_unix_nano <= client.end_time_unix_nano


def test_the_collector_is_told_who_sends_and_gets_its_credentials(
    observed: tuple[Collector, dict[str, str], list[dict[str, Any]]],
) -> None:
    collector, _, _ = observed
    resource = collector.resources[0]
    assert (resource["service.name"], resource["service.version"], resource["team"]) == ("shop", "7", "sales")
    assert {headers["x-api-key"] for headers in collector.headers} == {"of ours"}


def test_every_line_of_a_request_and_of_its_job_has_the_trace_and_the_span(
    observed: tuple[Collector, dict[str, str], list[dict[str, Any]]],
) -> None:
    collector, _, lines = observed
    ids = {span.name: span.span_id.hex() for span in collector.spans}
    job = next(span.span_id.hex() for span in collector.spans if span.kind == Span.SPAN_KIND_CONSUMER)
    ours = {line["message"]: line["span_id"] for line in lines if line.get("trace_id") == TRACE}
    server = ids["POST /orders/{order}"]
    assert ours["order.stored"] == ours["POST /orders/7 200"] == server
    assert ours["order.confirmed"] == job
    about = [line for line in lines if "request_id" in line or "job_id" in line]
    assert len(about) >= 12
    assert all(len(line["trace_id"]) == 32 and len(line["span_id"]) == 16 for line in about)
    assert not [line for line in lines if line["level"] in ("WARNING", "ERROR")]


def test_the_metrics_are_read_in_both_formats(
    observed: tuple[Collector, dict[str, str], list[dict[str, Any]]],
) -> None:
    _, answers, _ = observed
    for families in (read_text(answers["text"]), read_openmetrics(answers["openmetrics"])):
        samples = [sample for family in families for sample in family.samples]
        named = {(one.name, one.labels.get("route", ""), one.labels.get("class", "")): one.value for one in samples}
        order = "/orders/{order}"
        assert named["http_server_requests_total", order, "public"] == 3
        assert named["http_server_request_duration_seconds_count", order, "public"] == 3
        assert named["http_server_response_size_bytes_count", order, "public"] == 3
        assert named["http_server_requests_total", "unmatched", "public"] == 1
        assert named["http_server_inflight_requests", "", "public"] == 0
        clients = [one for one in samples if one.name == "http_client_requests_total"]
        assert [(one.labels, one.value) for one in clients] == [
            ({"method": "GET", "host": "127.0.0.1", "code": "200"}, 3)
        ]
        engines = {one.labels["engine"] for one in samples if one.name == "db_pool_size"}
        assert engines == {"db", "db_reader"}
        assert not [one for one in samples if "/metrics" in one.labels.values()]
    examples = [
        one.exemplar.labels["trace_id"]
        for family in read_openmetrics(answers["openmetrics"])
        for one in family.samples
        if one.exemplar is not None
    ]
    assert examples == [TRACE]
