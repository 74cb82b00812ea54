"""What happens while the store of the limits is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from svc_infra.config import Settings
from svc_infra.errors import UnavailableError
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware._limiter import LOG_INTERVAL_SECONDS, PAUSE_SECONDS, Limiter
from svc_infra.middleware.gcra import Rate, Use, Verdict
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore, RedisRateLimitStore
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import Wiring
from tests.middleware.asgi import call
from tests.obs.log_capture import captured

USES = [Use("a", Rate(1000, 60))]


class Proxy:
    """Stands before Valkey, and can be told to say nothing or to be gone."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self.mode: Literal["passing", "silent", "gone"] = "passing"
        self._links: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.turn("gone")
        self._server.close()
        await self._server.wait_closed()

    def turn(self, mode: Literal["passing", "silent", "gone"]) -> None:
        self.mode = mode
        if mode == "gone":
            for writer in self._links:
                writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "gone":
            writer.transport.abort()
            return
        back, forth = await asyncio.open_connection(*self._target)
        self._links |= {writer, forth}
        with suppress(ConnectionError):
            await asyncio.gather(self._carry(reader, forth), self._carry(back, writer))
        self._links -= {writer, forth}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.mode == "passing":
                writer.write(data)
        writer.close()


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(valkey_url) as proxy:
        yield proxy


class Recorder:
    """An app that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


@pytest.mark.parametrize("mode", ["silent", "gone"])
async def test_a_store_that_is_down_costs_few_requests_its_timeout_and_fails_none(proxy: Proxy, mode: Any) -> None:
    store, app = RedisRateLimitStore(proxy.url, timeout_seconds=0.2), Recorder()
    limited = RateLimitMiddleware(app, rate="100/minute", store=store, on_outage="allow")
    assert (await call(limited)).header("x-ratelimit-remaining") == "99"
    proxy.turn(mode)
    started = time.monotonic()
    answers = [await call(limited) for _ in range(300)]
    spent = time.monotonic() - started
    assert {answer.status for answer in answers} == {204}
    assert app.calls == 301
    assert spent < 0.2 + (spent // PAUSE_SECONDS + 1) * 0.2 + 1.0  # not 300 times the timeout
    assert [name for name, _ in answers[-1].headers] == ["ratelimit-policy"]
    await store.close()


async def test_counting_begins_again_within_a_second_of_the_stores_return(proxy: Proxy) -> None:
    store, app = RedisRateLimitStore(proxy.url, timeout_seconds=0.2), Recorder()
    limited = RateLimitMiddleware(app, rate="100/hour", store=store)
    await asyncio.gather(*[call(limited) for _ in range(5)])
    proxy.turn("gone")
    await call(limited)
    proxy.turn("passing")
    returned = time.monotonic()
    answer = await call(limited)
    while not [name for name, _ in answer.headers if name == "ratelimit"]:
        answer = await call(limited)
    assert time.monotonic() - returned <= 1.0
    assert answer.header("x-ratelimit-remaining") == "94"  # what was counted before is remembered
    await store.close()


async def test_requests_can_be_denied_instead_and_the_app_is_not_called(proxy: Proxy) -> None:
    store, app = RedisRateLimitStore(proxy.url, timeout_seconds=0.2), Recorder()
    limited = RateLimitMiddleware(app, store=store, on_outage="deny")
    proxy.turn("gone")
    for _ in range(3):
        refused = await call(limited)
        assert refused.is_problem(503, "unavailable")
        assert refused.header("retry-after") == "1"
    assert app.calls == 0
    await store.close()


async def test_a_loop_is_not_blocked_while_the_store_says_nothing(proxy: Proxy) -> None:
    store = RedisRateLimitStore(proxy.url, timeout_seconds=0.5)
    limited = RateLimitMiddleware(Recorder(), store=store)
    await call(limited)
    proxy.turn("silent")
    waiting = asyncio.create_task(call(limited))
    ticks = 0
    while not waiting.done():
        await asyncio.sleep(0)
        ticks += 1
    assert ticks > 100
    assert (await waiting).status == 204
    await store.close()


class Broken(MemoryRateLimitStore):
    """A store that fails as it is told."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    async def take(self, uses: Sequence[Use]) -> list[Verdict]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return await super().take(uses)


class Seconds:
    """A clock that stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("error", [UnavailableError(), TimeoutError(), RuntimeError("Event loop is closed")])
async def test_whatever_a_store_raises_is_an_outage(error: Exception) -> None:
    limiter = Limiter(Broken(error))
    assert await limiter.take(USES) is None


async def test_a_store_that_is_down_is_tried_by_one_request_in_each_pause() -> None:
    clock, store = Seconds(), Broken(UnavailableError())
    limiter = Limiter(store, clock=clock)
    await asyncio.gather(*[limiter.take(USES) for _ in range(10)])
    tried = store.calls
    for _ in range(10):
        await limiter.take(USES)
    assert store.calls == tried
    clock.now += PAUSE_SECONDS
    await asyncio.gather(*[limiter.take(USES) for _ in range(10)])
    assert store.calls == tried + 1
    store.error = None
    assert await limiter.take(USES) is None
    clock.now += PAUSE_SECONDS
    assert await limiter.take(USES) is not None
    assert await limiter.take(USES) is not None


async def test_every_request_that_is_not_counted_is_counted_elsewhere_and_logged_once_a_minute() -> None:
    clock, store, wiring = Seconds(), Broken(UnavailableError("gone")), Wiring(Settings())
    limiter, metrics = Limiter(store, clock=clock), Metrics()
    wiring.provide(Metrics, metrics)
    with captured() as output, wiring.active():
        for _ in range(240):  # two minutes
            await limiter.take(USES)
            clock.now += PAUSE_SECONDS
        store.error = None
        await limiter.take(USES)
    *down, up = output.lines
    assert {line["message"] for line in down} == {"rate_limit.store_down"}
    assert [line["uncounted_requests"] for line in down] == [1, 1 + LOG_INTERVAL_SECONDS / PAUSE_SECONDS]
    assert (up["message"], up["uncounted_requests"]) == ("rate_limit.store_up", 240)
    assert metrics.registry.get_sample_value("rate_limit_uncounted_total", {"outcome": "allow"}) == 240
