"""What becomes a span, of which trace, and what becomes none."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from fastapi import WebSocket
from opentelemetry import trace
from opentelemetry.sdk.trace import _Span
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.config import OtelSettings, Settings
from svc_infra.errors import MissingExtraError
from svc_infra.http import HttpClient, add_http
from svc_infra.jobs import InMemoryJobQueue, task
from svc_infra.obs.context import current, restored
from svc_infra.obs.logging import logger
from svc_infra.obs.tracing import Tracing, span
from svc_infra.obs.tracing.sdk import Recorded
from svc_infra.obs.tracing.spans import ServerSpan, Span
from svc_infra.wiring import wiring_of
from tests.jobs.working import until_state, working
from tests.middleware.asgi import call, lifespan
from tests.obs.log_capture import captured
from tests.obs.traced_app import CALLER, KEPT, NOT_KEPT, TRACE, Kept, id_of, parent_of, service


async def test_a_request_is_one_span_in_its_callers_trace() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        headers = [KEPT, ("Host", "api.example.com:8443"), ("User-Agent", "curl")]
        answer = await call(app, "GET", "/orders/7", headers=headers, query=b"token=secret")
    (one,) = kept.get_finished_spans()
    assert (one.name, one.kind, one.status.status_code) == ("GET /orders/{order}", SpanKind.SERVER, StatusCode.UNSET)
    assert one.context is not None
    assert f"{one.context.trace_id:032x}" == TRACE == answer.json["trace_id"]
    assert parent_of(one) == CALLER
    assert id_of(one) == answer.json["span_id"]
    assert dict(one.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/orders/{order}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/orders/7",
        "network.protocol.version": "1.1",
        "server.address": "api.example.com",
        "server.port": 8443,
        "user_agent.original": "curl",
        "client.address": "192.0.2.1",
    }
    resource = one.resource.attributes
    assert [resource[f"service.{name}"] for name in ("name", "version")] == ["shop", "7"]
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("[2001:db8::7]:8443", "2001:db8::7", 8443),
        ("[2001:db8::7]", "2001:db8::7", None),
        ("example.com", "example.com", None),
        ("a:\xb2", "a:\xb2", None),  # which Python takes for a digit and not for a number
        (":80", "", None),
    ],
)
async def test_a_span_is_made_of_any_host_and_shows_no_secret_of_the_path(
    host: str, address: str, port: int | None
) -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        await call(app, "GET", "/reset/eyJhbGciOiJIUzI1NiJ9.e30.c2ln", headers=[("Host", host)])
        assert wiring_of(app).in_flight == 0
    (one,) = kept.get_finished_spans()
    attributes = dict(one.attributes or {})
    assert (attributes["server.address"], attributes.get("server.port")) == (address, port)
    assert attributes["url.path"] == "/reset/[redacted]"


async def test_a_trace_that_begins_here_has_the_id_that_the_log_shows() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        with captured() as output:
            answer = await call(app, "GET", "/orders/7")
    (one,) = kept.get_finished_spans()
    assert one.parent is None
    assert one.context is not None
    for line in [*output.lines, answer.json]:
        assert (line["trace_id"], line["span_id"]) == (f"{one.context.trace_id:032x}", id_of(one))
    assert {line["message"] for line in output.lines} == {"looked", "GET /orders/7 200"}


async def test_parts_of_a_request_are_spans_inside_of_its_own_also_side_by_side() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        with captured() as output:
            inside, outside = (await call(app, "GET", "/parts", headers=[KEPT])).json
    request, part = kept.named("GET /parts"), kept.named("price.calculate")
    assert (inside, outside) == (id_of(part), id_of(request))
    assert output.only("calculated")["span_id"] == id_of(part)
    assert output.only("GET /parts 200")["span_id"] == id_of(request)
    assert dict(part.attributes or {}) == {"items": 3, "text": "x" * 1024}
    for name in ("a", "b"):
        assert parent_of(kept.named(name)) == id_of(request)
        assert parent_of(kept.named(f"{name}.inner")) == id_of(kept.named(name))


async def test_failures_are_told_apart_by_their_kind_and_tell_no_secret() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        for path in ("/fails", "/missing", "/nowhere/at/all"):
            await call(app, "BREW" if "nowhere" in path else "GET", path, headers=[KEPT])
    failed, part = kept.named("GET /fails"), kept.named("breaks")
    for one in (failed, part):
        assert one.status.status_code is StatusCode.ERROR
        assert (one.attributes or {})["error.type"] == "KeyError"
    missing = kept.named("GET /missing")
    assert missing.status.status_code is StatusCode.UNSET
    unknown = kept.named("HTTP").attributes or {}
    assert (unknown["http.request.method"], unknown["http.response.status_code"]) == ("_OTHER", 404)
    assert "http.route" not in unknown
    assert "secret" not in "".join(one.to_json() for one in kept.get_finished_spans())


async def test_of_a_trace_that_is_not_kept_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, made = Kept(), list[str]()
    for kind in (_Span, NonRecordingSpan, Recorded, ServerSpan, Span):
        before = kind.__init__

        def count(self: Any, *args: Any, _before: Any = before, **options: Any) -> None:
            made.append(type(self).__name__)
            _before(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", count)
    app = service(kept, otel=OtelSettings(traces_sampler="parentbased_always_off"))
    made.clear()
    async with lifespan(app):
        for headers in ([NOT_KEPT], []):
            for path in ("/orders/7", "/parts", "/fails"):
                await call(app, "GET", path, headers=headers)
        assert made == []
        await call(app, "GET", "/orders/7", headers=[KEPT])
        assert (made.count("_Span"), made.count("ServerSpan")) == (1, 1)
    assert len(kept.get_finished_spans()) == 1


async def test_probes_and_scrapes_begin_no_trace_and_continue_one() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        for path in ("/metrics", "/_ops/ready"):
            await call(app, "GET", path)
        await call(app, "GET", "/_ops/live", headers=[KEPT])
    (one,) = kept.get_finished_spans()
    assert one.name == "GET /_ops/live"


async def test_instrumentation_of_other_libraries_finds_the_span() -> None:
    kept, found = Kept(), list[int]()
    app = service(kept)

    @app.get("/other")
    async def other() -> None:
        found.append(trace.get_current_span().get_span_context().span_id)

    async with lifespan(app):
        await call(app, "GET", "/other", headers=[KEPT])
        await call(app, "GET", "/other", headers=[NOT_KEPT])
    assert found == [int(id_of(kept.named("GET /other")), 16), 0]


async def test_an_outbound_call_is_a_span_and_carries_it_on() -> None:
    kept, received = Kept(), list[bytes]()
    app = service(kept, http_client={"allow_private_addresses": True})
    add_http(app)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]

    @app.get("/calls")
    async def calls() -> int:
        client = wiring_of(app).get(HttpClient)
        return (await client.request("GET", f"http://127.0.0.1:{port}/hook/secret?token=secret")).status

    async with server, lifespan(app):
        await call(app, "GET", "/calls", headers=[KEPT])
        await call(app, "GET", "/calls", headers=[NOT_KEPT])
        page = (await call(app, "GET", "/metrics")).body.decode()
    one = kept.named("GET")
    assert (one.kind, parent_of(one)) == (SpanKind.CLIENT, id_of(kept.named("GET /calls")))
    assert dict(one.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 503,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": port,
        "error.type": "503",
    }
    assert f"traceparent: 00-{TRACE}-{id_of(one)}-01".encode() in received[0]
    assert f"traceparent: 00-{TRACE}-".encode() in received[1]
    assert received[1].split(b"traceparent: ")[1][:55].endswith(b"-00")
    assert 'http_client_requests_total{code="503",host="127.0.0.1",method="GET"} 2.0' in page
    assert 'http_client_request_duration_seconds_count{host="127.0.0.1",method="GET"} 2.0' in page


@task
async def deliver(fails: bool = False) -> None:
    logger.info("delivered")
    if fails:
        raise KeyError("a secret")


async def test_a_job_is_a_span_in_the_trace_of_whoever_enqueued_it() -> None:
    kept, queue = Kept(), InMemoryJobQueue()
    app = service(kept)

    @app.post("/orders")
    async def create(fails: bool) -> str:
        with span("store"):
            return await deliver.options(on=queue, max_attempts=1).enqueue(fails=fails)

    async with lifespan(app):
        with captured() as output:
            done = (await call(app, "POST", "/orders", headers=[KEPT], query=b"fails=false")).json
            async with working(queue, deliver, wiring=wiring_of(app)):
                await until_state(queue, done)
        line = output.only("delivered")
        failed = (
            await call(
                app, "POST", "/orders", headers=[("traceparent", f"00-{'a' * 32}-{CALLER}-01")], query=b"fails=true"
            )
        ).json
        async with working(queue, deliver, wiring=wiring_of(app)):
            await until_state(queue, failed)
        unkept = (await call(app, "POST", "/orders", headers=[NOT_KEPT], query=b"fails=false")).json
        async with working(queue, deliver, wiring=wiring_of(app)):
            await until_state(queue, unkept)
    ours, theirs = [one for one in kept.get_finished_spans() if one.name.startswith("process ")]
    first_store = next(one for one in kept.get_finished_spans() if one.name == "store")
    assert ours.name.endswith("deliver")
    assert (ours.kind, parent_of(ours)) == (SpanKind.CONSUMER, id_of(first_store))
    assert (line["trace_id"], line["span_id"]) == (TRACE, id_of(ours))
    assert (ours.attributes or {})["messaging.message.id"] == done
    assert (ours.attributes or {})["svc_infra.job.outcome"] == "succeeded"
    assert theirs.status.status_code is StatusCode.ERROR
    assert (theirs.attributes or {})["svc_infra.job.outcome"] == "dead"


async def test_a_job_that_nobody_has_asked_for_begins_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, queue = Kept(), InMemoryJobQueue()
    app = service(kept)
    async with lifespan(app):
        job_id = await deliver.options(on=queue).enqueue()
        async with working(queue, deliver, wiring=wiring_of(app)):
            await until_state(queue, job_id)
    (one,) = kept.get_finished_spans()
    assert one.parent is None


def test_without_tracing_every_line_of_a_job_still_has_a_trace_and_a_span() -> None:
    with restored({}) as fresh, captured() as output:
        logger.info("works")
        assert (len(fresh.trace_id), len(fresh.span_id)) == (32, 16)
    line = output.only("works")
    assert (line["trace_id"], line["span_id"]) == (fresh.trace_id, fresh.span_id)


async def test_a_script_begins_a_trace_of_its_own() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        with wiring_of(app).active(), span("import"), span("line"):
            pass
        assert current().trace_id == ""
    assert parent_of(kept.named("line")) == id_of(kept.named("import"))
    assert kept.named("import").parent is None


def test_a_websocket_is_a_span() -> None:
    kept = Kept()
    app = service(kept)

    @app.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(current().span_id)
        await websocket.close()

    with TestClient(app) as client, client.websocket_connect("/talk", headers=dict([KEPT])) as socket:
        inside = socket.receive_text()
    one = kept.named("WEBSOCKET /talk")
    assert (parent_of(one), id_of(one)) == (CALLER, inside)


async def test_an_example_of_a_slow_request_is_the_trace_that_was_kept() -> None:
    kept = Kept()
    app = service(kept)
    async with lifespan(app):
        await call(app, "GET", "/orders/1", headers=[NOT_KEPT])
        accept = [("Accept", "application/openmetrics-text; version=1.0.0")]
        before = (await call(app, "GET", "/metrics", headers=accept)).body.decode()
        await call(app, "GET", "/orders/1", headers=[KEPT])
        openmetrics = (await call(app, "GET", "/metrics", headers=accept)).body.decode()
        plain = (await call(app, "GET", "/metrics")).body.decode()
    assert "trace_id" not in before + plain
    found = [
        (sample.name, sample.labels["route"], sample.exemplar)
        for family in read_openmetrics(openmetrics)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    ((name, route, example),) = found
    assert (name, route) == ("http_server_request_duration_seconds_bucket", "/orders/{order}")
    assert example.labels == {"trace_id": TRACE}
    assert 0 < example.value < 10
    assert float(example.timestamp) > 1.7e9


async def test_without_the_extra_only_those_who_ask_for_traces_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opentelemetry.sdk", "opentelemetry.sdk.trace"):
        monkeypatch.setitem(sys.modules, name, None)
    app = create_app()
    assert not wiring_of(app).has(Tracing)
    with pytest.raises(MissingExtraError, match=r"svc-infra\[otel\]"):
        create_app(settings=Settings(otel=OtelSettings(exporter_otlp_endpoint="http://127.0.0.1:4318")))
    off = OtelSettings(exporter_otlp_endpoint="http://127.0.0.1:4318", sdk_disabled=True)
    assert not wiring_of(create_app(settings=Settings(otel=off))).has(Tracing)
