"""Simple routes answer exactly as FastAPI's own do, and nothing that guards a route is ever left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import fastapi
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import ResponseValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from svc_infra.app import simple_route
from svc_infra.app.simple_route import TESTED_FASTAPI, SimpleRoute, _is_simple, shorten
from tests.middleware.asgi import Answer, call


class Item(BaseModel):
    id: int
    name: str = "item"
    secret: str | None = None


def declare(app: FastAPI | APIRouter) -> None:
    """The same routes on any app."""

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, object]:
        return {"id": item_id}

    @app.get("/models/{item_id}", response_model=Item, response_model_exclude_none=True, status_code=203)
    async def model(item_id: Annotated[int, Path(gt=0)], name: str = "x") -> Any:
        return {"id": item_id, "name": name, "extra": 1} if item_id != 7 else {"id": "no number"}

    @app.get("/search")
    async def search(
        text: Annotated[str, Query(min_length=2, alias="q")],
        kind: Literal["a", "b"] = "a",
        tags: Annotated[list[str], Query()] = [],  # noqa: B006 - as FastAPI's own documentation writes it
        ratio: float | None = None,
    ) -> Any:
        return {"text": text, "kind": kind, "tags": tags, "ratio": ratio}

    @app.get("/untyped/{what}")
    async def untyped(what: str):  # type: ignore[no-untyped-def]
        return [what, {1, 2}, Item(id=3)]

    @app.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return "<p>page</p>"

    @app.delete("/empty", status_code=204)
    async def empty() -> None:
        return None

    @app.get("/response/{text}")
    async def response(text: str) -> Response:
        return PlainTextResponse(text, headers={"X-Own": "1"})

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(418, headers={"X-Why": "tea"})


def pair() -> tuple[FastAPI, FastAPI]:
    plain, short = FastAPI(), FastAPI()
    short.router.route_class = SimpleRoute
    declare(plain)
    declare(short)
    shorten(short)
    return plain, short


PLAIN, SHORT = pair()


def test_the_routes_are_simple_and_the_version_is_one_that_was_tested() -> None:
    assert fastapi.__version__.startswith(TESTED_FASTAPI), "run these tests on it, then name it in simple_route.py"
    routes = [route for route in SHORT.routes if isinstance(route, SimpleRoute)]
    assert len(routes) == 8
    assert all(_is_simple(route) for route in routes)


def told(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    return answer.status, sorted(answer.headers), answer.body


words = st.text(st.characters(codec="utf-8", exclude_characters="/?#&=%+;"), max_size=8)
numbers = st.one_of(st.integers(-3, 9).map(str), words)
targets = st.one_of(
    st.builds("/items/{}".format, numbers),
    st.builds("/models/{}".format, numbers),
    st.builds("/untyped/{}".format, words),
    st.builds("/response/{}".format, words),
    st.sampled_from(["/search", "/page", "/empty", "/refused", "/search/"]),
)
queries = st.lists(st.tuples(st.sampled_from(["q", "kind", "tags", "ratio", "name", "text"]), numbers), max_size=5)


@settings(deadline=None, max_examples=300)
@given(method=st.sampled_from(["GET", "HEAD", "DELETE"]), path=targets, query=queries)
async def test_any_request_is_answered_as_fastapi_answers_it(
    method: str, path: str, query: list[tuple[str, str]]
) -> None:
    joined = "&".join(f"{name}={value}" for name, value in query).encode()
    answers: list[Any] = []
    for app in (PLAIN, SHORT):
        try:
            answers.append(told(await call(app, method, path, query=joined)))
        except ResponseValidationError as error:
            answers.append((error.errors(), error.body, error.endpoint_path, error.endpoint_function))
    assert answers[0] == answers[1]


def refuse() -> None:
    raise HTTPException(403)


async def needs_header(item_id: int, x: Annotated[str | None, Header()] = None) -> None: ...
async def needs_request(request: Request) -> None: ...
async def needs_background(tasks: BackgroundTasks) -> None: ...
async def needs_response(response: Response) -> None: ...
async def needs_dependency(x: Annotated[None, Depends(refuse)]) -> None: ...
async def needs_body(item: Item) -> None: ...
def is_no_coroutine(item_id: int) -> None: ...


@pytest.mark.parametrize(
    "endpoint",
    [needs_header, needs_request, needs_background, needs_response, needs_dependency, needs_body, is_no_coroutine],
)
def test_a_function_that_takes_more_goes_the_long_way(endpoint: Callable[..., Any]) -> None:
    assert not _is_simple(SimpleRoute("/{item_id}", endpoint))


def guarded_by_app() -> FastAPI:
    app = FastAPI(dependencies=[Depends(refuse)])
    app.router.route_class = SimpleRoute
    declare(app)
    return app


def guarded_by_route() -> FastAPI:
    app = FastAPI()
    app.router.route_class = SimpleRoute

    @app.get("/items/{item_id}", dependencies=[Depends(refuse)])
    async def item(item_id: int) -> int:
        return item_id

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
    app, other = FastAPI(), FastAPI()
    other.router.route_class = SimpleRoute
    declare(other)
    shorten(other)
    app.include_router(other.router, dependencies=[Depends(refuse)])
    return app


def guarded_afterwards() -> FastAPI:
    app = guarded_by_route()
    app.router.routes.clear()
    declare(app)
    shorten(app)
    (route,) = [one for one in app.routes if isinstance(one, APIRoute) and one.path == "/items/{item_id}"]
    guard = guarded_by_route().routes[-1]
    assert isinstance(guard, APIRoute)
    route.dependant.dependencies.extend(guard.dependant.dependencies)
    return app


@pytest.mark.parametrize(
    "made",
    [
        guarded_by_app,
        guarded_by_route,
        guarded_by_router,
        guarded_by_inclusion,
        guarded_by_inclusion_of_inclusion,
        guarded_by_inclusion_of_an_apps_own_routes,
        guarded_afterwards,
    ],
)
async def test_whatever_guards_a_route_is_always_asked(made: Callable[[], FastAPI]) -> None:
    app = made()
    shorten(app)
    assert (await call(app, path="/items/1")).status == 403


def test_a_route_class_around_it_keeps_the_short_way() -> None:
    async def endpoint(item_id: int) -> int:
        return item_id

    class Around(APIRoute): ...

    kind = type("Both", (Around, SimpleRoute), {})
    assert kind("/{item_id}", endpoint).get_route_handler().__module__ == simple_route.__name__


async def test_a_mounted_app_answers_as_itself() -> None:
    outer = FastAPI()
    outer.mount("/in", SHORT)
    assert (await call(outer, path="/in/items/3")).json == {"id": 3}


def test_another_version_of_fastapi_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endpoint(item_id: int) -> int:
        return item_id

    short = SimpleRoute("/{item_id}", endpoint).get_route_handler()
    monkeypatch.setattr(fastapi, "__version__", "0.999.0")
    other = SimpleRoute("/{item_id}", endpoint).get_route_handler()
    assert short.__module__ == simple_route.__name__
    assert other.__module__ == "fastapi.routing"
