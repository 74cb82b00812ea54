from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from svc_infra.middleware import LoggingMiddleware
from tests.middleware.asgi import call
from tests.obs.log_capture import captured


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def fail(request: Request) -> PlainTextResponse:
    raise KeyError


def logged() -> Starlette:
    app = Starlette(routes=[Route("/users/{id}", hello), Route("/fail", fail)])
    app.add_middleware(LoggingMiddleware)
    return app


async def test_each_answered_request_is_one_line() -> None:
    with captured() as output:
        await call(logged(), path="/users/7", query=b"token=SECRET", client=None)
        await call(logged(), "POST", "/nothing")
        await call(logged(), path="/_ops/live")
    first, second = output.lines
    assert (first["message"], first["route"], first["bytes"], first["client_ip"]) == (
        "GET /users/7 200",
        "/users/{id}",
        5,
        "",
    )
    assert (second["message"], second["route"]) == ("POST /nothing 404", "unmatched")
    assert "SECRET" not in output.text


async def test_a_request_that_fails_is_a_line_too() -> None:
    with captured() as output, pytest.raises(KeyError):
        await call(logged(), path="/fail")
    assert output.lines[0]["status"] == 500
