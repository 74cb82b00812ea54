from __future__ import annotations

import asyncio
import gc
import logging
import re
import weakref
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import Message, Receive, Scope, Send

from svc_infra.middleware import RateLimitMiddleware
from svc_infra.obs.add import add_observability
from svc_infra.obs.context import current
from svc_infra.obs.metrics import Metrics
from svc_infra.observability import metrics
from svc_infra.wiring import current_wiring, wiring_of
from tests.middleware.asgi import around, call, edged, only, scope_of
from tests.obs.log_capture import captured

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def context(request: Request) -> Response:
    facts = current()
    return PlainTextResponse(f"{facts.request_id} {facts.trace_id} {facts.span_id}")


async def test_every_answer_has_a_request_id_and_the_handler_knows_it() -> None:
    answer = await call(only(context))
    request_id, trace_id, span_id = answer.body.decode().split()
    assert answer.header("x-request-id") == request_id
    assert [len(part) for part in (request_id, trace_id, span_id)] == [32, 32, 16]
    assert (await call(only(context))).body != answer.body
    assert current().request_id == ""


async def test_a_well_formed_request_id_and_trace_of_the_client_are_taken_over() -> None:
    headers = [("X-Request-Id", "client.id-1_A"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")]
    answer = await call(only(context), headers=headers)
    request_id, trace_id, span_id = answer.body.decode().split()
    assert (answer.header("x-request-id"), request_id, trace_id) == ("client.id-1_A", "client.id-1_A", TRACE)
    assert span_id != "00f067aa0ba902b7"


@settings(deadline=None)
@given(value=st.text(st.characters(max_codepoint=255), max_size=200))
async def test_a_request_id_is_taken_over_exactly_when_it_is_well_formed(value: str) -> None:
    answer = await call(APP_OF_CONTEXT, headers=[("X-Request-Id", value)])
    answered = answer.header("x-request-id")
    assert REQUEST_ID.fullmatch(answered)
    assert (answered == value) is (REQUEST_ID.fullmatch(value) is not None)


@settings(deadline=None)
@given(value=st.text(st.characters(max_codepoint=255)))
async def test_any_traceparent_leads_to_a_valid_trace(value: str) -> None:
    answer = await call(APP_OF_CONTEXT, headers=[("traceparent", value)])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.body.decode().split()[1])


APP_OF_CONTEXT = around(Starlette(routes=[Route("/", context)]))


async def test_an_id_or_a_trace_that_comes_twice_counts_as_not_sent() -> None:
    headers = [("X-Request-Id", "a"), ("X-Request-Id", "a"), *[("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")] * 2]
    answer = await call(only(context), headers=headers)
    assert answer.header("x-request-id") != "a"
    assert TRACE not in answer.body.decode()


async def test_the_apps_own_request_id_header_gives_way() -> None:
    async def endpoint(request: Request) -> Response:
        return Response(headers={"X-Request-Id": "from-upstream"})

    assert (await call(only(endpoint), headers=[("X-Request-Id", "mine")])).header("x-request-id") == "mine"


async def test_an_answer_is_passed_on_as_it_is() -> None:
    async def endpoint(request: Request) -> Response:
        response = PlainTextResponse("hello", status_code=201)
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    answer = await call(only(endpoint))
    cookies = [value.partition(";")[0] for name, value in answer.headers if name == "set-cookie"]
    assert (answer.status, answer.body, cookies) == (201, b"hello", ["a=1", "b=2"])


async def test_a_response_that_is_used_again_does_not_grow() -> None:
    constant = PlainTextResponse("hello")
    app = only(lambda request: constant)
    first, second = await call(app), await call(app)
    assert len(first.headers) == len(second.headers)
    assert first.header("x-request-id") != second.header("x-request-id")


async def test_a_stream_is_passed_on_part_by_part() -> None:
    released = asyncio.Event()
    seen: list[bytes] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await released.wait()
        yield b"data: 2\n\n"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def receive() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: Message) -> None:
        if message.get("body"):
            seen.append(message["body"])
            if not released.is_set():
                assert seen == [b"data: 1\n\n"]
                released.set()

    await only(endpoint)(scope_of(), receive, send)
    assert seen == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_the_handler_hears_that_the_client_went_away_and_nobody_is_answered() -> None:
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with captured() as output:
        answer = await call(around(wait))
    assert answer.messages == []
    assert [line["status"] for line in output.lines] == [499]


async def test_a_client_that_goes_away_is_no_failure_of_the_service() -> None:
    async def leave_midway(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ClientDisconnect

    with captured() as output:
        await call(around(leave_midway))
    assert [line["message"] for line in output.lines] == ["GET / 200"]


async def test_cancellation_passes_through_and_everything_is_put_back() -> None:
    entered = asyncio.Event()

    async def hang(request: Request) -> Response:
        entered.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    app = only(hang)
    with captured() as output:
        task = asyncio.create_task(call(app))
        await entered.wait()
        assert wiring_of(app).in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert wiring_of(app).in_flight == 0
    assert [line["status"] for line in output.lines] == [499]


async def test_requests_in_flight_are_counted_also_when_they_fail() -> None:
    seen: list[int] = []

    async def fail(request: Request) -> Response:
        seen.append(wiring_of(request.app).in_flight)
        raise KeyError

    app = only(fail)
    await asyncio.gather(call(app), call(app))
    assert max(seen) >= 1
    assert wiring_of(app).in_flight == 0


async def test_the_access_line_says_what_was_asked_and_answered() -> None:
    async def endpoint(request: Request) -> Response:
        current().tenant_id = "acme"
        return PlainTextResponse("hello")

    app = edged(Starlette(routes=[Route("/users/{id}", endpoint)]))
    with captured() as output:
        answer = await call(app, "GET", "/users/7\nforged", query=b"token=SECRET", client=("203.0.113.5", 1))
        await call(app, "GET", "/metrics")
        await call(app, "GET", "/verify/eyJhbGciOiJIUzI1NiJ9.SECRET.SECRET")
    line = output.lines[0]
    assert line["message"] == "GET /users/7\nforged 200"
    assert (line["method"], line["route"], line["path"], line["status"]) == (
        "GET",
        "/users/{id}",
        "/users/7\nforged",
        200,
    )
    assert (line["bytes"], line["client_ip"], line["tenant_id"]) == (5, "203.0.113.5", "acme")
    assert line["request_id"] == answer.header("x-request-id")
    assert line["duration_ms"] >= 0
    assert [line["path"] for line in output.lines[1:]] == ["/verify/[redacted]"]
    assert "SECRET" not in output.text


async def test_a_route_of_somebody_elses_making_without_a_template_is_logged_as_unmatched() -> None:
    class Anything(BaseRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            return Match.FULL, {}

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("hello")(scope, receive, send)

    with captured() as output:
        assert (await call(edged(Starlette(routes=[Anything()])))).status == 200
    assert output.lines[0]["route"] == "unmatched"


async def test_the_wiring_of_the_app_is_current_while_it_answers_starts_and_stops() -> None:
    seen: list[object] = []

    async def endpoint(request: Request) -> Response:
        seen.append(current_wiring())
        return Response()

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_wiring())

    app = only(endpoint)
    await call(app)
    edge = around(run)
    await edge({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen[0] is wiring_of(app)
    assert seen[1] is edge._wiring
    assert current_wiring() is None


async def test_two_apps_share_nothing() -> None:
    async def endpoint(request: Request) -> Response:
        metrics.increment("answers")
        await asyncio.sleep(0)
        metrics.increment("answers")
        raise KeyError("SECRET")

    prod, local = only(endpoint, env="prod", max_body_bytes=3), only(endpoint, env="local")
    for app in (prod, local):
        add_observability(app)
    answers = await asyncio.gather(call(prod), call(local), call(local), call(prod, "POST", body=b"1234"))
    counts = [wiring_of(app).get(Metrics).registry.get_sample_value("answers_total") for app in (prod, local)]
    assert counts == [4, 4]
    assert [b"SECRET" in answer.body for answer in answers] == [False, True, True, False]
    assert len({answer.header("x-request-id") for answer in answers}) == 4


async def test_an_app_mounted_in_another_runs_as_itself_behind_one_edge() -> None:
    async def endpoint(request: Request) -> Response:
        metrics.increment("answers")
        assert wiring_of(inner).in_flight == wiring_of(outer).in_flight == 1
        return Response()

    inner = edged(Starlette(routes=[Route("/x", endpoint)]))
    outer = edged(Starlette(routes=[Mount("/in", app=inner)]))
    for app in (inner, outer):
        add_observability(app)
    with captured() as output:
        answer = await call(outer, "GET", "/in/x")
    assert answer.status == 200
    assert answer.header("x-request-id")
    assert [line["route"] for line in output.lines] == ["/in/x"]
    assert wiring_of(inner).get(Metrics).registry.get_sample_value("answers_total") == 1
    assert wiring_of(outer).get(Metrics).registry.get_sample_value("answers_total") is None
    assert wiring_of(inner).in_flight == wiring_of(outer).in_flight == 0


@pytest.fixture
def _quiet_access_log() -> Iterator[None]:
    access = logging.getLogger("svc_infra.access")
    access.setLevel("WARNING")
    yield
    access.setLevel("NOTSET")


@pytest.mark.usefixtures("_quiet_access_log")
async def test_the_access_log_can_be_turned_down_alone() -> None:
    with captured() as output:
        await call(only(hello))
    assert output.text == ""


async def test_a_request_is_gone_with_its_answer_and_does_not_wait_for_the_garbage_collector() -> None:
    class Left:
        """Something in the scope."""

    left: list[weakref.ref[Left]] = []

    async def answer(request: Request) -> PlainTextResponse:
        request.scope["left"] = Left()
        left.append(weakref.ref(request.scope["left"]))
        return PlainTextResponse("hello")

    app = only(answer)
    app.add_middleware(RateLimitMiddleware)
    assert (await call(app)).status == 200  # makes what is made once
    gc.disable()
    try:
        assert (await call(app)).status == 200
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()
