from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from svc_infra.config import AppSettings, MetricsSettings, Settings
from svc_infra.obs.add import add_observability
from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import is_set_up, setup_logging
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import call, edged

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(app: Starlette, path: str = "/metrics") -> Samples:
    answer = await call(app, "GET", path)
    assert answer.status == 200
    assert answer.header("content-type").startswith("text/plain; version=0.0.4")
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = tuple(sorted((name, text) for name, text in sample.labels.items() if text))
            assert (sample.name, labels) not in samples
            samples[sample.name, labels] = sample.value
    return samples


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
async def test_an_app_serves_its_own_metrics_and_those_of_the_process(kind: type[Starlette]) -> None:
    app = kind()
    add_observability(app)
    wiring_of(app).get(Metrics).increment("orders.created", plan="pro")
    samples = await scrape(app)
    assert samples["orders_created_total", labels(plan="pro")] == 1
    assert samples["process_resident_memory_bytes", ()] > 0
    assert not [name for name, _ in samples if name.endswith("_created")]


async def test_metrics_are_served_where_they_are_wanted_and_stay_out_of_the_schema() -> None:
    app = FastAPI()
    add_observability(app, metrics_path="/internal/metrics")
    assert await scrape(app, "/internal/metrics")
    assert (await call(app, "GET", "/metrics")).status == 404
    assert app.openapi()["paths"] == {}


async def test_adding_twice_changes_nothing() -> None:
    app = Starlette()
    add_observability(app)
    metrics = wiring_of(app).get(Metrics)
    add_observability(app)
    assert wiring_of(app).get(Metrics) is metrics
    assert len(app.routes) == 1


async def test_where_metrics_are_switched_off_nothing_is_served_and_counting_still_works() -> None:
    app = Starlette()
    wiring = wiring_of(app, settings=Settings(metrics=MetricsSettings(enabled=False)))
    add_observability(app)
    assert not app.routes
    assert not wiring.has(HttpMetrics)
    wiring.get(Metrics).increment("orders.created")


async def test_logging_is_set_up_unless_it_was_before_and_taken_back_from_uvicorn_at_the_start() -> None:
    import uvicorn

    root = logging.getLogger()
    app = Starlette()
    wiring = wiring_of(app, settings=Settings(app=AppSettings(env="prod")))
    add_observability(app)
    assert is_set_up()
    setup_logging("ERROR", "plain")
    handlers = root.handlers[:]
    add_observability(Starlette())
    assert root.handlers == handlers
    assert root.level == logging.ERROR
    uvicorn.Config(app="none:app")
    async with wiring.running():
        assert not logging.getLogger("uvicorn").handlers
        assert not logging.getLogger("uvicorn.access").hasHandlers()


async def test_requests_are_counted_and_timed_by_route_template(tmp_path: Path) -> None:
    (tmp_path / "logo.svg").touch()
    app = edged(FastAPI())
    add_observability(app)
    outer, inner = APIRouter(), APIRouter(prefix="/users")

    @inner.get("/{user}")
    async def user(user: int) -> int:
        return user

    outer.include_router(inner, prefix="/v1")
    app.include_router(outer)  # type: ignore[attr-defined]
    app.add_route("/plain/{name}", hello)
    app.mount("/files/{tenant}", StaticFiles(directory=tmp_path))
    app.mount(
        "/sub/{tenant}", Starlette(routes=[Route("/x/{y}", hello), Mount("/deep", routes=[Route("/{z}", hello)])])
    )
    paths = ["/v1/users/1", "/v1/users/2", "/v1/users/nobody", "/plain/a", "/files/acme/logo.svg", "/sub/acme/x/1"]
    paths += ["/sub/acme/deep/1", "/sub/acme/nothing", "/nothing", "/nothing/else"]
    for path in paths:
        await call(app, "GET", path)
    await call(app, "POST", "/v1/users/1")
    await call(app, "BREW", "/nothing")
    samples = await scrape(app)
    counted = {
        (one["method"], one["route"], one["code"]): int(count)
        for (name, pairs), count in samples.items()
        if name == "http_server_requests_total" and (one := dict(pairs))
    }
    assert counted == {
        ("GET", "/v1/users/{user}", "200"): 2,
        ("GET", "/v1/users/{user}", "422"): 1,
        ("POST", "/v1/users/{user}", "405"): 1,
        ("GET", "/plain/{name}", "200"): 1,
        ("GET", "/files/{tenant}/{path}", "200"): 1,
        ("GET", "/sub/{tenant}/x/{y}", "200"): 1,
        ("GET", "/sub/{tenant}/deep/{z}", "200"): 1,
        ("GET", "unmatched", "404"): 3,
        ("_OTHER", "unmatched", "404"): 1,
    }
    timed = labels(method="GET", route="/v1/users/{user}")
    assert samples["http_server_request_duration_seconds_count", timed] == 3
    assert samples["http_server_inflight_requests", ()] == 0
    again = await scrape(app)
    assert not [pairs for _, pairs in again if ("route", "/metrics") in pairs], "a scrape is no user's request"


async def test_exceptions_are_counted_by_route_and_class() -> None:
    async def fail(request: Request) -> PlainTextResponse:
        raise KeyError("x")

    app = edged(Starlette(routes=[Route("/fail/{x}", fail)]))
    add_observability(app)
    await call(app, "GET", "/fail/1")
    samples = await scrape(app)
    assert samples["http_server_exceptions_total", labels(route="/fail/{x}", exception="KeyError")] == 1
    assert samples["http_server_requests_total", labels(method="GET", route="/fail/{x}", code="500")] == 1


async def test_the_class_of_a_path_is_on_every_http_metric() -> None:
    async def fail(request: Request) -> PlainTextResponse:
        raise KeyError("x")

    app = edged(Starlette(routes=[Route("/admin/{x}", hello), Route("/admin/fail/{x}", fail)]))
    add_observability(app, route_classifier=lambda path: "internal" if path.startswith("/admin") else "public")
    await call(app, "GET", "/admin/1")
    await call(app, "GET", "/admin/fail/1")
    await call(app, "GET", "/nothing")
    samples = await scrape(app)
    http = [dict(pairs) for name, pairs in samples if name.startswith("http_server")]
    assert all(one["class"] in ("internal", "public") for one in http)
    seen = labels(method="GET", route="/admin/{x}", code="200", **{"class": "internal"})
    assert samples["http_server_requests_total", seen] == 1
    for name in ("public", "internal"):
        assert samples["http_server_inflight_requests", (("class", name),)] == 0


async def test_a_classifier_that_fails_costs_the_label_and_not_the_request() -> None:
    def classify(path: str) -> str:
        raise LookupError(path)

    app = edged(Starlette(routes=[Route("/", hello)]))
    add_observability(app, route_classifier=classify)
    assert (await call(app)).status == 200
    samples = await scrape(app)
    assert samples["http_server_requests_total", labels(method="GET", route="/", code="200", **{"class": "other"})] == 1
