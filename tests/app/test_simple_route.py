"""Simple routes answer exactly as FastAPI's own do, and nothing that guards or watches a route is ever left out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi import routing as fastapi_routing
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from svc_infra import create_app
from svc_infra.app import simple_route
from svc_infra.app.simple_route import TESTED_FASTAPI, SimpleRoute, _is_simple
from tests.app.simple_routes import PAIRS, SIMPLE, declare, declare_others, direct, scaled
from tests.middleware.asgi import Answer, call


def simple_routes(app: FastAPI) -> int:
    """How many of an app's routes, as its routers see them, take the short way."""
    contexts = fastapi_routing.iter_route_contexts(app.routes)
    routes = [context._effective_route for context in contexts if isinstance(context.original_route, SimpleRoute)]
    return sum(_is_simple(route) for route in routes)


def test_the_routes_that_are_compared_take_the_short_way_and_the_version_was_tested() -> None:
    assert fastapi.__version__.startswith(TESTED_FASTAPI), "run these tests on it, then name it in simple_route.py"
    assert [simple_routes(short) for _, short in PAIRS.values()] == [SIMPLE, 2 * SIMPLE, 2 * SIMPLE, SIMPLE, 0]
    assert not any(simple_routes(plain) for plain, _ in PAIRS.values())


async def told(app: FastAPI, method: str, path: str, query: str = "", **options: Any) -> Any:
    """What a client, a handler of exceptions and the tasks behind the answer see of a request."""
    app.state.done.clear()
    try:
        answer: Answer = await call(app, method, path, query=query.encode(), **options)
    except ResponseValidationError as error:
        return error.errors(), error.body, error.endpoint_ctx, str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error), str(error)
    return answer.messages, list(app.state.done)


words = st.text(st.characters(codec="utf-8", exclude_characters="/?#&=%+;"), max_size=8)
numbers = st.one_of(st.integers(-3, 9).map(str), words)
targets = st.one_of(
    st.builds("/{}/{}".format, st.sampled_from(["items", "models", "even", "decorated", "partial"]), numbers),
    st.builds("/{}/{}".format, st.sampled_from(["sync", "later", "given"]), numbers),
    st.builds("/{}/{}".format, st.sampled_from(["untyped", "response", "loud", "tea"]), words),
    st.sampled_from(["/search", "/filter", "/page", "/empty", "/stream", "/refused", "/search/", "/headed", "/lines"]),
)
queries = st.lists(
    st.tuples(st.sampled_from(["q", "kind", "tags", "ratio", "name", "id", "by", "extra"]), numbers), max_size=5
)


@pytest.mark.parametrize("prefix", PAIRS)
@settings(deadline=None, max_examples=200)
@given(method=st.sampled_from(["GET", "GET", "HEAD", "DELETE", "POST"]), path=targets, query=queries)
async def test_any_request_is_answered_as_fastapi_answers_it(
    prefix: str, method: str, path: str, query: list[tuple[str, str]]
) -> None:
    plain, short = PAIRS[prefix]
    joined = "&".join(f"{name}={value}" for name, value in query)
    assert await told(short, method, prefix + path, joined) == await told(plain, method, prefix + path, joined)


@pytest.mark.parametrize("prefix", PAIRS)
def test_the_openapi_document_is_the_same(prefix: str) -> None:
    plain, short = PAIRS[prefix]
    assert short.openapi() == plain.openapi()


def refuse() -> None:
    raise HTTPException(403)


def guarded_by_app() -> FastAPI:
    return direct(SimpleRoute, dependencies=[Depends(refuse)])


def guarded_by_route() -> FastAPI:
    app = FastAPI()
    app.router.route_class = SimpleRoute
    app.get("/items/{item_id}", dependencies=[Depends(refuse)])(scaled)
    return app


def guarded_by_router() -> FastAPI:
    app, router = FastAPI(), APIRouter(dependencies=[Depends(refuse)], route_class=SimpleRoute)
    declare(router)
    app.include_router(router)
    return app


def guarded_by_inclusion() -> FastAPI:
    app, router = FastAPI(), APIRouter(route_class=SimpleRoute)
    declare(router)
    app.include_router(router, dependencies=[Depends(refuse)])
    return app


def guarded_by_inclusion_of_inclusion() -> FastAPI:
    app, outer, inner = FastAPI(), APIRouter(), APIRouter(route_class=SimpleRoute)
    declare(inner)
    outer.include_router(inner)
    app.include_router(outer, dependencies=[Depends(refuse)])
    return app


def guarded_by_inclusion_of_an_apps_own_routes() -> FastAPI:
    app = FastAPI()
    app.include_router(direct(SimpleRoute).router, dependencies=[Depends(refuse)])
    return app


def the_route(app: FastAPI, path: str = "/items/{item_id}") -> APIRoute:
    (route,) = [route for route in app.routes if isinstance(route, APIRoute) and route.path == path]
    return route


def guarded_afterwards() -> FastAPI:
    app = direct(SimpleRoute)
    the_route(app).dependant.dependencies.extend(the_route(guarded_by_route()).dependant.dependencies)
    return app


def guarded_by_a_wrapper() -> FastAPI:
    async def guard(**values: Any) -> None:
        refuse()

    app = direct(SimpleRoute)
    the_route(app).dependant.call = guard
    return app


def guarded_by_a_class() -> FastAPI:
    class Guarded(SimpleRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            original = super().get_route_handler()

            async def handler(request: Request) -> Response:
                refuse()
                return await original(request)

            return handler

    return direct(Guarded)


@pytest.mark.parametrize(
    "build",
    [
        guarded_by_app,
        guarded_by_route,
        guarded_by_router,
        guarded_by_inclusion,
        guarded_by_inclusion_of_inclusion,
        guarded_by_inclusion_of_an_apps_own_routes,
        guarded_afterwards,
        guarded_by_a_wrapper,
        guarded_by_a_class,
    ],
)
async def test_whatever_guards_a_route_is_always_asked(build: Callable[[], FastAPI]) -> None:
    assert (await call(build(), path="/items/1")).status == 403


async def test_a_dependency_that_is_overridden_later_is_the_one_that_is_asked() -> None:
    app = guarded_by_inclusion()
    assert (await call(app, path="/items/1")).status == 403
    app.dependency_overrides[refuse] = lambda: None
    assert (await call(app, path="/items/1")).json == {"id": 1}
    app.dependency_overrides.clear()
    assert (await call(app, path="/items/1")).status == 403


async def test_a_request_of_a_custom_route_class_is_the_one_that_is_read() -> None:
    class Shouted(Request):
        @property
        def path_params(self) -> dict[str, Any]:
            return {name: value.upper() for name, value in super().path_params.items()}

    class Shouting(SimpleRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            original = super().get_route_handler()

            async def handler(request: Request) -> Response:
                return await original(Shouted(request.scope, request.receive))

            return handler

    assert (await call(direct(Shouting), path="/response/quiet")).body == b"QUIET"


@pytest.mark.parametrize("name", ["solve_dependencies", "run_endpoint_function", "serialize_response"])
@pytest.mark.parametrize("before", [True, False], ids=["before the route is made", "afterwards"])
async def test_a_tool_that_wraps_what_fastapi_does_sees_every_request(
    name: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = getattr(fastapi_routing, name), []

    @functools.wraps(original)
    async def watched(**options: Any) -> Any:
        seen.append(name)
        return await original(**options)

    app = None if before else direct(SimpleRoute)
    monkeypatch.setattr(fastapi_routing, name, watched)
    app = app or direct(SimpleRoute)
    assert (await call(app, path="/items/1")).json == {"id": 1}
    assert seen == [name]


async def test_a_tool_that_wraps_fastapis_handlers_sees_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = fastapi_routing.get_request_handler, []

    @functools.wraps(original)
    def watching(**options: Any) -> Any:
        handler = original(**options)

        @functools.wraps(handler)
        async def watched(request: Request) -> Response:
            seen.append(request.url.path)
            return await handler(request)

        return watched

    monkeypatch.setattr(fastapi_routing, "get_request_handler", watching)
    await call(direct(SimpleRoute), path="/items/1")
    assert seen == ["/items/1"]


async def test_fastapis_own_telemetry_has_the_same_spans() -> None:
    seen = []
    for kind in (APIRoute, SimpleRoute):
        spans, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        await call(direct(kind, telemetry={"tracer_provider": provider}), path="/items/1")
        seen.append([span.name for span in spans.get_finished_spans()])
    assert seen[0] == seen[1]
    assert len(seen[0]) > 3


def endpoints_that_take_more() -> list[Callable[..., Any]]:
    app = FastAPI()
    declare_others(app)
    return [route.endpoint for route in app.routes if isinstance(route, APIRoute)]


@pytest.mark.parametrize("endpoint", endpoints_that_take_more(), ids=lambda endpoint: endpoint.__name__)
def test_a_function_that_takes_more_goes_the_long_way(endpoint: Callable[..., Any]) -> None:
    method = "POST" if "item" in inspect.signature(endpoint).parameters else "GET"
    handler = SimpleRoute("/{item_id}", endpoint, methods=[method]).get_route_handler()
    assert handler.__module__ == "fastapi.routing"


def test_another_version_of_fastapi_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    short = SimpleRoute("/{item_id}", scaled).get_route_handler()
    monkeypatch.setattr(fastapi, "__version__", "0.999.0")
    other = SimpleRoute("/{item_id}", scaled).get_route_handler()
    assert short.__module__ == simple_route.__name__
    assert other.__module__ == "fastapi.routing"


def test_the_routes_of_an_app_and_of_the_global_router_are_of_this_class(router: APIRouter) -> None:
    app = create_app()
    app.get("/own/{item_id}")(scaled)
    router.get("/global/{item_id}")(scaled)
    assert simple_routes(app) == 2
