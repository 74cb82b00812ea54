from __future__ import annotations

import re

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from svc_infra.middleware import LoggingMiddleware, RequestIdMiddleware
from svc_infra.obs.context import current
from tests.middleware.asgi import call, edged
from tests.obs.log_capture import captured


async def show_id(request: Request) -> PlainTextResponse:
    return PlainTextResponse(current().request_id)


def plain() -> Starlette:
    return Starlette(routes=[Route("/users/{id}", show_id)])


async def test_each_request_gets_an_id_and_gives_it_back() -> None:
    app = plain()
    app.add_middleware(RequestIdMiddleware)
    first, second = await call(app, path="/users/1"), await call(app, path="/users/1")
    assert re.fullmatch(r"[0-9a-f]{32}", first.header("x-request-id"))
    assert first.body.decode() == first.header("x-request-id") != second.header("x-request-id")
    assert current().request_id == ""


async def test_a_well_formed_id_of_the_client_is_kept_and_any_other_replaced() -> None:
    app = plain()
    app.add_middleware(RequestIdMiddleware)
    assert (await call(app, path="/users/1", headers=[("X-Request-Id", "mine")])).body == b"mine"
    answer = await call(app, path="/users/1", headers=[("X-Request-Id", "not mine")])
    assert answer.header("x-request-id") not in ("", "not mine")


async def test_inside_of_the_edge_the_middlewares_do_nothing_twice() -> None:
    app = plain()
    app.add_middleware(LoggingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    with captured() as output:
        answer = await call(edged(app), path="/users/1")
    assert answer.header("x-request-id") == answer.body.decode()
    assert len(output.lines) == 1


async def test_the_middlewares_of_the_overview_work_together_on_a_plain_app() -> None:
    app = plain()
    app.add_middleware(LoggingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    with captured() as output:
        answer = await call(app, path="/users/1")
    (line,) = output.lines
    assert line["message"] == "GET /users/1 200"
    assert (line["route"], line["bytes"], line["request_id"]) == ("/users/{id}", 32, answer.header("x-request-id"))
