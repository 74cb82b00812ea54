from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from svc_infra.errors import ConfigurationError
from svc_infra.middleware import RateLimitMiddleware
from tests.middleware.asgi import call, scope_of


class HeldClock:
    """Nanoseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_ns = time.monotonic_ns()

    def __call__(self) -> int:
        return self.now_ns


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def limited(clock: HeldClock, rate: str = "3/minute", **options: Any) -> Starlette:
    app = Starlette(routes=[Route("/{path:path}", hello), WebSocketRoute("/{path:path}", socket)])
    app.add_middleware(RateLimitMiddleware, rate=rate, clock_ns=clock, **options)
    return app


async def test_as_many_as_the_rate_says_pass_and_then_none_until_time_has() -> None:
    clock = HeldClock()
    app = limited(clock)
    for left in ("2", "1", "0"):
        answer = await call(app)
        assert (answer.status, answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")) == (
            200,
            "3",
            left,
        )
    refused = await call(app, path="/orders")
    assert refused.is_problem(429, "rate_limited")
    assert refused.json["instance"] == "/orders"
    assert refused.header("x-ratelimit-remaining") == "0"
    assert 20 <= int(refused.header("retry-after")) <= 21
    assert 59 <= int(refused.header("x-ratelimit-reset")) - time.time() <= 61
    clock.now_ns += 20 * 1_000_000_000
    assert (await call(app)).status == 200
    assert (await call(app)).status == 429


async def test_clients_are_counted_apart_by_address_and_ipv6_by_network() -> None:
    app = limited(HeldClock(), "1/minute")
    for client in ("192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:2::1"):
        assert (await call(app, client=(client, 1))).status == 200
    for client in ("192.0.2.1", "::ffff:192.0.2.2", "2001:db8:1::ffff", "2001:db8:2::1%eth0"):
        assert (await call(app, client=(client, 2))).status == 429


async def test_no_header_makes_a_client_another() -> None:
    app = limited(HeldClock(), "1/minute")
    headers = [
        ("X-API-Key", "a"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Tenant-Id", "b"),
        ("Forwarded", "for=1.2.3.4"),
    ]
    assert (await call(app)).status == 200
    assert (await call(app, headers=headers)).status == 429


async def test_without_an_address_all_count_as_one() -> None:
    app = limited(HeldClock(), "1/minute")
    assert (await call(app, client=None)).status == 200
    assert (await call(app, client=None)).status == 429


async def test_probes_are_never_limited_and_other_prefixes_can_be_chosen() -> None:
    app = limited(HeldClock(), "1/minute")
    for _ in range(5):
        answer = await call(app, path="/_ops/ready")
        assert answer.status == 200
        assert not [name for name, _ in answer.headers if "ratelimit" in name]
    assert (await call(app, path="/_operations")).status == 200
    assert (await call(app, path="/_operations")).status == 429


async def test_clients_beyond_the_bound_push_out_those_not_heard_of_for_longest() -> None:
    app = limited(HeldClock(), "1/minute", max_keys=3)
    for client in ("a", "b", "c"):
        await call(app, client=(client, 1))
    assert (await call(app, client=("a", 1))).status == 429  # heard of again
    assert (await call(app, client=("d", 1))).status == 200  # pushes out b
    assert (await call(app, client=("a", 1))).status == 429
    assert (await call(app, client=("c", 1))).status == 429
    assert (await call(app, client=("b", 1))).status == 200


async def test_a_websocket_counts_as_a_request() -> None:
    app = limited(HeldClock(), "1/minute")

    async def connect(extensions: dict[str, Any]) -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {**scope_of(), "type": "websocket", "extensions": extensions}
        await app(scope, receive, send)
        return sent

    accepted, closed = await connect({})
    assert (accepted["type"], closed["type"]) == ("websocket.accept", "websocket.close")
    assert dict(accepted["headers"])[b"x-ratelimit-remaining"] == b"0"
    (refused,) = await connect({})
    assert (refused["type"], refused["code"], refused["reason"]) == ("websocket.close", 1008, "rate_limited")
    start, body = await connect({"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert b'"code":"rate_limited"' in body["body"]


async def test_the_default_is_a_hundred_a_minute() -> None:
    answer = await call(RateLimitMiddleware(Starlette(routes=[Route("/", hello)])))
    assert (answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")) == ("100", "99")
    assert abs(int(answer.header("x-ratelimit-reset")) - time.time()) < 3


def test_a_wrong_rate_is_told_when_the_middleware_is_made() -> None:
    with pytest.raises(ConfigurationError, match="'often' is no rate"):
        RateLimitMiddleware(Starlette(), rate="often")


async def test_two_apps_count_apart() -> None:
    clock = HeldClock()
    first, second = limited(clock, "1/minute"), limited(clock, "1/minute")
    assert (await call(first)).status == 200
    assert (await call(second)).status == 200
