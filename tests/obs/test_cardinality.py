"""Whoever sends random requests opens few series."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from svc_infra.obs.add import add_observability
from svc_infra.obs.http_metrics import METHODS, UNMATCHED, HttpMetrics
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import call, edged
from tests.obs.test_add import scrape

MAX_SERIES = 200
CLASSIFIERS = [None, lambda path: path, lambda path: "internal" if "7" in path else "public"]


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def series(metrics: Metrics) -> list[tuple[str, float]]:
    return [(sample.name, sample.value) for family in metrics.registry.collect() for sample in family.samples]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_million_random_requests_are_all_counted_in_few_series(classifier: Callable[[str], str] | None) -> None:
    random, metrics = Random(1), Metrics()
    http = HttpMetrics(metrics, route_classifier=classifier)
    methods = [*METHODS, "BREW", "get", "X" * 1000, *map(str, range(1000))]
    choose, number, count = random.choice, random.random, 1_000_000
    for _ in range(count):
        status = int(100 + number() * 500)
        route = "/users/{id}" if status == 200 else UNMATCHED
        method = "GET" if status == 200 else choose(methods)
        http.finished(method, route, status, number(), status, http.started(f"/{number()}"), None)
    found = series(metrics)
    assert len(found) < MAX_SERIES
    assert sum(value for name, value in found if name == "http_server_requests_total") == count
    assert sum(value for name, value in found if name == "http_server_request_duration_seconds_count") == count


@pytest.mark.parametrize("classifier", CLASSIFIERS)
async def test_random_requests_to_an_app_open_few_series(classifier: Callable[[str], str] | None) -> None:
    random = Random(2)
    app = edged(Starlette(routes=[Route("/users/{id}", hello)]))
    add_observability(app, route_classifier=classifier)
    count = 4_000
    for turn in range(count):
        method = random.choice(["GET", "POST", "PUT", "DELETE", "BREW", f"M{turn}"])
        await call(app, method, f"/users/{random.random()}" if turn % 2 else f"/{random.random()}/{random.random()}")
    samples = await scrape(app)
    assert len(samples) < MAX_SERIES
    assert sum(value for (name, _), value in samples.items() if name == "http_server_requests_total") == count
    assert wiring_of(app).get(Metrics).registry.get_sample_value("http_server_inflight_requests") in (0, None)


def test_series_beyond_the_limit_are_counted_together() -> None:
    metrics = Metrics()
    http = HttpMetrics(metrics, max_series=20)
    for number in range(3000):
        http.finished("GET", f"/{number}/{{x}}", 200, 0.01, 5, http.started("/"), None)
    counted = [value for name, value in series(metrics) if name == "http_server_requests_total"]
    assert (len(counted), sum(counted)) == (20, 3000)
    assert metrics.registry.get_sample_value("http_server_inflight_requests", {"class": ""}) == 0
