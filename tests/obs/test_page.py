"""Who may read the metrics, and in which format."""

from __future__ import annotations

import asyncio
import threading

import pytest
from anyio import to_thread
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from svc_infra.middleware import RateLimitMiddleware
from svc_infra.obs.add import add_observability
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.page import FixedRoute
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import Answer, call, edged
from tests.obs.test_add import scrape

TOKEN = "a-token-of-thirty-two-characters!"


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def observed(**settings: object) -> Starlette:
    app = edged(Starlette(routes=[Route("/", hello)]), **settings)
    add_observability(app)
    return app


async def from_peer(app: Starlette, peer: str | None, *headers: tuple[str, str]) -> Answer:
    return await call(app, "GET", "/metrics", client=None if peer is None else (peer, 1), headers=headers)


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.7.7", "::1", "fd00::7", "::ffff:10.0.0.1"]
)
async def test_whoever_asks_from_inside_may_read(peer: str) -> None:
    assert (await from_peer(observed(env="prod"), peer)).status == 200


@pytest.mark.parametrize(
    "peer", ["203.0.113.9", "172.32.0.1", "169.254.169.254", "2001:db8::1", "::ffff:8.8.8.8", "x", None]
)
async def test_to_the_outside_there_are_no_metrics(peer: str | None) -> None:
    answer = await from_peer(observed(env="prod"), peer)
    assert answer.status == 404
    assert b"requests" not in answer.body


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
async def test_what_a_proxy_passes_on_comes_from_outside(name: str) -> None:
    assert (await from_peer(observed(env="prod"), "10.0.0.1", (name, "10.0.0.2"))).status == 404


async def test_a_proxy_that_is_trusted_changes_nothing_about_that() -> None:
    app = observed(env="prod", edge={"trusted_proxies": "10.0.0.1"})
    assert (await from_peer(app, "10.0.0.1", ("X-Forwarded-For", "203.0.113.9"))).status == 404
    assert (await from_peer(app, "10.0.0.2")).status == 200


async def test_with_a_token_only_the_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_TOKEN", TOKEN)
    app = observed(env="prod")
    for sent in ((), (("Authorization", "Bearer wrong"),), (("Authorization", TOKEN),), (("Authorization", "ÿ€"[:1]),)):
        answer = await from_peer(app, "127.0.0.1", *sent)
        assert answer.status == 401
        assert answer.header("www-authenticate") == "Bearer"
    assert (await from_peer(app, "203.0.113.9", ("Authorization", f"Bearer {TOKEN}"))).status == 200


async def test_in_local_everybody_may_read() -> None:
    assert (await from_peer(observed(env="local"), "203.0.113.9")).status == 200


async def test_a_scrape_is_never_limited_shed_or_refused_for_its_host() -> None:
    app = observed(env="prod", edge={"trusted_hosts": "api.example.com", "max_concurrency": 1, "max_queue": 0})
    app.add_middleware(RateLimitMiddleware, rate="1/minute")
    for _ in range(5):
        assert (await from_peer(app, "10.0.0.1", ("Host", "10.0.0.9:8000"))).status == 200
    own = ("Host", "api.example.com")
    assert [(await call(app, headers=[own])).status for _ in range(2)] == [200, 429]


async def test_a_scrape_is_answered_while_every_thread_of_the_handlers_is_taken() -> None:
    app, may_end, busy = observed(), threading.Event(), asyncio.Event()
    loop, threads = asyncio.get_running_loop(), to_thread.current_default_thread_limiter()

    def block() -> None:
        loop.call_soon_threadsafe(busy.set)
        may_end.wait()

    before, threads.total_tokens = threads.total_tokens, 1
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(to_thread.run_sync(block))
            await busy.wait()
            try:
                assert (await from_peer(app, None)).status == 200
            finally:
                may_end.set()
    finally:
        threads.total_tokens = before


@pytest.mark.parametrize("below", ["", "/api"])
async def test_probes_and_scrapes_are_known_where_the_app_is_served_below_a_path(below: str) -> None:
    app = observed(env="prod", edge={"trusted_hosts": "api.example.com"})
    answers = [await call(app, path=f"{below}/metrics", root_path=below, client=("10.0.0.1", 1)) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert b'route="/metrics"' not in answers[1].body
    assert (await call(app, path=f"{below}/_ops/nothing", root_path=below)).status == 404
    assert (await call(app, path=f"{below}/", root_path=below)).status == 400


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text"]
)
async def test_openmetrics_is_given_where_it_is_asked_for(accept: str) -> None:
    app = observed()
    await call(app)
    wiring_of(app).get(Metrics).gauge("queue.depth", 3)
    answer = await from_peer(app, None, ("Accept", accept))
    assert answer.header("content-type").startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in read_openmetrics(answer.body.decode())}
    assert families["http_server_requests"].type == "counter"
    assert families["http_server_request_duration_seconds"].type == "histogram"
    assert families["queue_depth"].samples[0].value == 3
    assert ("http_server_requests_total", (("code", "200"), ("method", "GET"), ("route", "/"))) in await scrape(app)


@pytest.mark.parametrize(
    ("path", "root_path", "status"),
    [
        ("/fixed", "", 200),
        ("/below/fixed", "/below", 200),
        ("/other/fixed", "/below", 404),
        ("/other/fixed", "", 404),
        ("/fixed/", "", 307),
        ("/fixed\n", "", 404),
    ],
)
async def test_a_fixed_route_answers_at_its_path_and_nowhere_else(path: str, root_path: str, status: int) -> None:
    app = Starlette(routes=[FixedRoute("/fixed", hello)])
    assert (await call(app, path=path, root_path=root_path)).status == status
