"""Addresses, headers and slow bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message

from tests.middleware.asgi import Answer, around, call, only, scope_of


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def test_an_address_up_to_the_limit_is_answered_and_a_longer_one_is_not() -> None:
    app = only(hello, edge={"max_url_bytes": 100})
    assert (await call(app, path="/" + "x" * 49, query=b"q" * 50)).status == 200
    assert (await call(app, path="/" + "x" * 50, query=b"q" * 50)).is_problem(414, "uri_too_long")
    assert (await call(app, path="/" + "ä" * 60)).is_problem(414, "uri_too_long")


async def test_headers_up_to_the_limits_are_accepted_and_more_are_not() -> None:
    app = only(hello, edge={"max_headers": 3, "max_header_bytes": 60})
    assert (await call(app, headers=[("a", "1"), ("b", "2"), ("c", "3")])).status == 200
    assert (await call(app, headers=[("a", "1")] * 4)).is_problem(431, "headers_too_large")
    assert (await call(app, headers=[("a", "x" * 59)])).status == 200
    assert (await call(app, headers=[("a", "x" * 60)])).is_problem(431, "headers_too_large")
    assert (await call(app, headers=[("a", "x" * 30), ("a", "x" * 30)])).is_problem(431, "headers_too_large")


@pytest.mark.parametrize(
    ("asked", "limits", "reason"),
    [
        ({"headers": [("a", "x" * 99)]}, {"max_header_bytes": 50}, "headers_too_large"),
        ({"query": b"q" * 99}, {"max_url_bytes": 50}, "uri_too_long"),
    ],
)
async def test_a_websocket_with_too_large_headers_or_address_is_refused(
    asked: dict[str, Any], limits: dict[str, int], reason: str
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {**scope_of(**asked), "type": "websocket", "extensions": {}}
    del scope["method"]
    await around(only(hello), edge=limits)(scope, receive, send)
    assert [(message["type"], message["reason"]) for message in sent] == [("websocket.close", reason)]


async def slowly(app: Any, *parts: bytes, pause: float = 0.0) -> Answer:
    """Send these parts of a body and then nothing more."""
    answer, left = Answer(), list(parts)

    async def receive() -> Message:
        if not left:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await app(scope_of("POST"), receive, send)
    return answer


async def test_a_body_that_does_not_come_is_waited_for_only_so_long() -> None:
    answer = await slowly(only(echo, edge={"body_timeout_seconds": 0.02}), b"part")
    assert answer.is_problem(408, "request_timeout")
    assert answer.header("connection") == "close"


async def test_a_body_that_trickles_is_cut_although_something_always_comes() -> None:
    app = only(echo, edge={"body_timeout_seconds": 0.05, "min_body_bytes_per_second": 1_000_000})
    assert (await slowly(app, *[b"x"] * 1000, pause=0.01)).is_problem(408, "request_timeout")


async def test_each_byte_buys_the_time_that_the_slowest_rate_allows() -> None:
    app = only(echo, edge={"body_timeout_seconds": 0.05, "min_body_bytes_per_second": 1})
    parts = [b"x" * 10] * 10
    sent = 0

    async def receive() -> Message:
        nonlocal sent
        await asyncio.sleep(0.01)  # ten of them last longer than the limit
        sent += 1
        return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

    answer = Answer()

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await app(scope_of("POST"), receive, send)
    assert (answer.status, answer.body) == (200, b"100")


async def test_only_the_clients_own_slowness_counts() -> None:
    async def slow_handler(request: Request) -> Response:
        size = 0
        async for part in request.stream():
            await asyncio.sleep(0.02)
            size += len(part)
        return PlainTextResponse(str(size))

    app = only(slow_handler, edge={"body_timeout_seconds": 0.03})
    assert (await call(app, "POST", body=[b"x"] * 5)).body == b"5"


async def test_a_handler_that_overlooks_the_cut_cannot_answer_as_if_it_had_the_whole_body() -> None:
    async def stubborn(request: Request) -> Response:
        try:
            await request.body()
        except HTTPException:
            return PlainTextResponse("saved what there was")
        return PlainTextResponse("saved all")

    answer = await slowly(only(stubborn, edge={"body_timeout_seconds": 0.02}), b"part")
    assert answer.is_problem(408, "request_timeout")


async def test_the_handlers_time_does_not_run_while_it_waits_for_its_client() -> None:
    app = only(echo, edge={"body_timeout_seconds": 0.1, "handler_timeout_seconds": 0.03})
    assert (await slowly(app, b"part")).is_problem(408, "request_timeout")


async def test_waiting_for_the_client_to_leave_has_no_limit() -> None:
    left = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        assert await request.body() == b"all"
        asyncio.get_running_loop().call_later(0.05, left.set)
        assert (await request.receive())["type"] == "http.disconnect"
        return PlainTextResponse("done")

    parts = [b"all"]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    answer = Answer()

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await only(endpoint, edge={"body_timeout_seconds": 0.02})(scope_of("POST"), receive, send)
    assert answer.body == b"done"


@pytest.mark.parametrize("length", ["9" * 30, "9" * 5000])
async def test_a_body_of_absurd_length_is_refused_by_its_declaration(length: str) -> None:
    app = only(hello, edge={"max_header_bytes": 10_000})
    assert (await call(app, "POST", headers=[("content-length", length)])).is_problem(413, "payload_too_large")
