from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from svc_infra import create_app
from svc_infra.errors import ConfigurationError
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore
from tests.middleware.asgi import around, call, edged, lifespan, only, scope_of


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


class Waiting(MemoryRateLimitStore):
    """A store that is asked as those are that take waiting."""


Limit = Callable[..., Starlette]


@pytest.fixture(params=["alone", "in the edge", "in the edge, waiting for the store"])
def limited(request: pytest.FixtureRequest) -> Limit:
    """Makes an app with a rate limit."""

    def make(clock: HeldClock, rate: str | tuple[str, ...] = "3/minute", **options: Any) -> Starlette:
        app = Starlette(routes=[Route("/{path:path}", hello), WebSocketRoute("/{path:path}", socket)])
        store = (Waiting if "waiting" in request.param else MemoryRateLimitStore)(clock_ns=clock)
        app.add_middleware(RateLimitMiddleware, rate=rate, store=store, **options)
        return app if request.param == "alone" else edged(app)

    return make


async def test_as_many_as_the_rate_says_pass_and_then_none_until_time_has(limited: Limit) -> None:
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
    assert refused.json["violated-policies"] == ["ip-3-60"]
    assert refused.json["detail"] == "At most 3 requests in 60 seconds are allowed."
    assert refused.header("x-ratelimit-remaining") == "0"
    assert 20 <= int(refused.header("retry-after")) <= 21
    assert 59 <= int(refused.header("x-ratelimit-reset")) - time.time() <= 61
    clock.now_ns += 20 * 1_000_000_000
    assert (await call(app)).status == 200
    assert (await call(app)).status == 429


async def test_clients_are_counted_apart_by_address_and_ipv6_by_network(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    for client in ("192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:2::1"):
        assert (await call(app, client=(client, 1))).status == 200
    for client in ("192.0.2.1", "::ffff:192.0.2.2", "2001:db8:1::ffff", "2001:db8:2::1%eth0"):
        assert (await call(app, client=(client, 2))).status == 429


async def test_no_header_makes_a_client_another(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    headers = [
        ("X-API-Key", "a"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Tenant-Id", "b"),
        ("Forwarded", "for=1.2.3.4"),
    ]
    assert (await call(app)).status == 200
    assert (await call(app, headers=headers)).status == 429


async def test_without_an_address_all_count_as_one(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    assert (await call(app, client=None)).status == 200
    assert (await call(app, client=None)).status == 429


async def test_probes_are_never_limited_and_other_prefixes_can_be_chosen(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    for _ in range(5):
        answer = await call(app, path="/_ops/ready")
        assert answer.status == 200
        assert not [name for name, _ in answer.headers if "ratelimit" in name]
    assert (await call(app, path="/_operations")).status == 200
    assert (await call(app, path="/_operations")).status == 429
    assert (await call(app, path="/api/_ops/ready", root_path="/api")).status == 200
    other = limited(HeldClock(), "1/minute", exempt_prefixes=("/free/",))
    assert [(await call(other, path=path)).status for path in ("/free/a", "/_ops/ready", "/_ops/ready")] == [
        200,
        200,
        429,
    ]


async def test_a_preflight_is_never_limited_and_any_other_options_request_is(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    preflight = [("Origin", "https://shop.example"), ("Access-Control-Request-Method", "PUT")]
    for _ in range(3):
        assert (await call(app, "OPTIONS", headers=preflight)).status != 429
    assert (await call(app, "OPTIONS")).status != 429
    assert (await call(app, "OPTIONS")).status == 429


async def test_several_rates_hold_at_once_and_the_usual_headers_show_the_tightest(limited: Limit) -> None:
    clock = HeldClock()
    app = limited(clock, ("2/second", "3/minute"))
    answer = await call(app)
    assert (answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")) == ("2", "1")
    await call(app)
    refused = await call(app)
    assert (refused.json["violated-policies"], refused.header("retry-after")) == (["ip-2-1"], "1")
    clock.now_ns += 1_000_000_000
    answer = await call(app)
    assert (answer.status, answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")) == (
        200,
        "3",
        "0",
    )
    refused = await call(app)
    assert (refused.json["violated-policies"], refused.header("retry-after")) == (["ip-3-60"], "19")
    assert (refused.header("x-ratelimit-limit"), refused.header("x-ratelimit-remaining")) == ("3", "0")


async def test_without_a_rate_of_its_own_the_middleware_limits_nothing(limited: Limit) -> None:
    app = limited(HeldClock(), ())
    answer = await call(app)
    assert answer.status == 200
    assert not [name for name, _ in answer.headers if "ratelimit" in name]


async def test_a_rate_that_a_request_passes_twice_counts_it_once() -> None:
    store = MemoryRateLimitStore()
    inner = Starlette(routes=[Route("/", hello)])
    inner.add_middleware(RateLimitMiddleware, rate="3/minute", store=store)
    outer = Starlette(routes=[Mount("/inner", inner)])
    outer.add_middleware(RateLimitMiddleware, rate="3/minute", store=store)
    outer.add_middleware(RateLimitMiddleware, rate=("3/minute", "5/minute"), store=store)
    answer = await call(outer, path="/inner/")
    assert answer.status == 200
    assert (answer.header("x-ratelimit-remaining"), answer.header("ratelimit").count(";r=")) == ("2", 2)


async def test_an_inner_limit_answers_with_the_headers_of_both(limited: Limit) -> None:
    app = limited(HeldClock(), "1/minute")
    app.add_middleware(RateLimitMiddleware, rate="5/minute")
    await call(app)
    refused = await call(app)
    assert refused.is_problem(429, "rate_limited")
    assert (refused.json["violated-policies"], refused.header("ratelimit").count(";r=")) == (["ip-1-60"], 2)
    assert (refused.header("x-ratelimit-limit"), refused.header("x-ratelimit-remaining")) == ("1", "0")


async def test_the_headers_are_on_an_error_that_the_edge_answers() -> None:
    async def fail(request: Request) -> PlainTextResponse:
        raise KeyError("lost")

    app = only(fail)
    app.add_middleware(RateLimitMiddleware, rate="3/minute")
    answer = await call(app)
    assert answer.is_problem(500, "internal_error")
    assert (answer.header("x-ratelimit-remaining"), answer.header("ratelimit-policy")[:13]) == ("2", '"ip-3-60";q=3')


async def test_the_headers_are_on_whatever_answer_begins_in_the_edge() -> None:
    async def copying(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await inner({**scope}, receive, send)
        except KeyError:
            await PlainTextResponse("rescued")(scope, receive, send)

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("lost")

    inner = RateLimitMiddleware(fail, rate="3/minute")
    app = around(copying)
    assert [(await call(app)).header("x-ratelimit-remaining") for _ in range(3)] == ["2", "1", "0"]
    assert (await call(app)).is_problem(429, "rate_limited")


@pytest.mark.parametrize("store", [MemoryRateLimitStore, Waiting])
async def test_a_rate_that_is_passed_twice_in_the_edge_counts_once(store: type[MemoryRateLimitStore]) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = only(answer)
    app.add_middleware(RateLimitMiddleware, rate="3/minute", store=store())
    app.add_middleware(RateLimitMiddleware, rate=("3/minute", "5/minute"), store=store())
    told = await call(app)
    assert (told.header("x-ratelimit-remaining"), told.header("ratelimit").count(";r=")) == ("2", 2)


async def test_headers_that_the_app_sends_itself_are_kept() -> None:
    async def twice(request: Request) -> PlainTextResponse:
        response = PlainTextResponse("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    app = Starlette(routes=[Route("/", twice)], middleware=[Middleware(RateLimitMiddleware)])
    assert len([name for name, _ in (await call(app)).headers if name == "set-cookie"]) == 2


async def test_a_websocket_counts_as_a_request(limited: Limit) -> None:
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


async def test_two_apps_count_apart(limited: Limit) -> None:
    first, second = limited(HeldClock(), "1/minute"), limited(HeldClock(), "1/minute")
    assert (await call(first)).status == 200
    assert (await call(second)).status == 200


async def test_workers_with_one_redis_count_together(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    monkeypatch.setenv("RATE_LIMIT_TIMEOUT_SECONDS", "10")
    workers = [create_app(), create_app(), FastAPI()]
    for worker in workers:
        worker.add_middleware(RateLimitMiddleware, rate="2/hour")
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(lifespan(worker))
        assert [(await call(worker)).status for worker in workers] == [200, 200, 429]


async def test_a_driver_without_its_address_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE_LIMIT_DRIVER", "redis")
    app = create_app()
    app.add_middleware(RateLimitMiddleware)
    with pytest.raises(ConfigurationError, match="set REDIS_URL"):
        async with lifespan(app):
            pass
