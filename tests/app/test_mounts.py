"""Apps that are mounted in an app use its rooms and answer with problems, unless they have rooms of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from svc_infra.wiring import Part, wiring_of
from tests.app.conftest import Factory


class Clock:
    """A room's object."""


@pytest.fixture
def plain() -> FastAPI:
    """An app that knows nothing of the library, but for a dependency that asks for a room."""
    plain = FastAPI()

    @plain.get("/clock")
    async def clock(request: Request) -> str:
        return type(wiring_of(request.app).get(Clock)).__name__

    @plain.get("/numbers/{number}")
    async def number(number: int) -> int:
        return number

    @plain.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    return plain


@pytest.mark.parametrize("way", ["on the app", "on an included router", "in a mounted app"])
def test_a_mounted_app_uses_the_rooms_of_the_app_around_it(way: str, make: Factory, plain: FastAPI) -> None:
    app = make()
    wiring_of(app).provide(Clock, Clock())
    if way == "on the app":
        app.mount("/v1", plain)
    elif way == "on an included router":
        router = APIRouter()
        router.mount("/v1", plain)
        app.include_router(router)
    else:
        app.mount("/", Starlette(routes=[Mount("/v1", plain)]))
    with TestClient(app) as client:
        assert client.get("/v1/clock").json() == "Clock"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/nowhere", 404, "not_found"),
        ("/v1/numbers/x", 422, "validation_error"),
        ("/v1/broken", 500, "internal_error"),
    ],
)
def test_errors_of_a_mounted_app_are_problems(path: str, status: int, code: str, make: Factory, plain: FastAPI) -> None:
    app = make("prod")
    app.mount("/v1", plain)
    response = TestClient(app).get(path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["instance"] == path


def test_errors_of_a_mounted_starlette_app_and_of_static_files_are_problems(make: Factory, tmp_path: Path) -> None:
    async def refuse(request: StarletteRequest) -> Response:
        raise HTTPException(409, "Taken.")

    app = make()
    app.mount("/starlette", Starlette(routes=[Route("/taken", refuse)]))
    app.mount("/files", StaticFiles(directory=tmp_path))
    client = TestClient(app)
    assert client.get("/starlette/taken").json()["detail"] == "Taken."
    assert client.get("/starlette/nowhere").json()["code"] == "not_found"
    assert client.get("/files/nothing.txt").json()["code"] == "not_found"
    assert client.post("/files/nothing.txt").json()["code"] == "method_not_allowed"


def test_a_mounted_app_keeps_the_handlers_that_it_has_set_itself(make: Factory) -> None:
    async def own(request: StarletteRequest, error: Exception) -> Response:
        return PlainTextResponse("mine", status_code=404)

    app = make()
    app.mount("/admin", Starlette(exception_handlers={HTTPException: own, 404: own, 500: own}))
    response = TestClient(app).get("/admin/nowhere")
    assert (response.status_code, response.text) == (404, "mine")


def test_an_app_with_rooms_of_its_own_keeps_them_when_it_is_mounted(make: Factory) -> None:
    outer, inner = make(name="outer"), make("prod", name="inner")

    @inner.get("/name")
    async def name(request: Request) -> str:
        return wiring_of(request.app).settings.app.name

    @inner.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    outer.mount("/inner", inner)
    with TestClient(outer) as client:
        assert client.get("/inner/name").json() == "inner"
        assert client.get("/inner/broken").json()["code"] == "internal_error"
        assert client.get("/inner/docs").status_code == 404
        assert "/inner/problems" in client.get("/inner/").text


def test_the_scope_names_the_mounted_app(make: Factory, plain: FastAPI) -> None:
    @plain.get("/which")
    async def which(request: Request) -> JSONResponse:
        return JSONResponse(request.scope["app"] is plain)

    app = make()
    app.mount("/v1", plain)
    assert TestClient(app).get("/v1/which").json() is True


def test_a_mounted_app_starts_nothing(make: Factory, plain: FastAPI) -> None:
    """As in FastAPI; its rooms are those of the app around it, which start with that one."""
    started: list[str] = []

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        started.append("room")
        yield

    app = make()
    app.mount("/v1", plain)
    wiring_of(app).add(Part("room", run=room))
    with TestClient(app) as client:
        client.get("/v1/numbers/1")
    assert started == ["room"]
