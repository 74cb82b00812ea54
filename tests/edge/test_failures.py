from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import Request
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from svc_infra.errors import NotFoundError, UnavailableError
from svc_infra.obs.add import add_observability
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import Answer, around, call, only, scope_of
from tests.obs.log_capture import captured


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFoundError("User", 7), 404, "not_found"),
        (HTTPException(402), 402, "payment_required"),
        (KeyError("x"), 500, "internal_error"),
        (ExceptionGroup("tasks", [NotFoundError("User", 7)]), 404, "not_found"),
        (TimeoutError(), 504, "deadline_exceeded"),
    ],
)
async def test_what_escapes_from_a_middleware_becomes_a_problem(error: Exception, status: int, code: str) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    answer = await call(around(fail), "GET", "/users/7", query=b"token=SECRET")
    assert answer.is_problem(status, code)
    problem = answer.json
    assert problem["instance"] == "/users/7"
    assert problem["request_id"] == answer.header("x-request-id")
    assert len(problem["trace_id"]) == 32


async def test_a_redirect_that_a_middleware_raises_is_a_redirect() -> None:
    async def move(scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(307, headers={"Location": "/there"})

    answer = await call(around(move))
    assert (answer.status, answer.header("location"), answer.body) == (307, "/there", b"")


async def test_in_prod_an_unexpected_error_tells_nothing_and_is_logged_once_with_its_stack() -> None:
    async def fail(request: Request) -> Response:
        raise KeyError("SECRET-DETAIL")

    with captured() as output:
        answer = await call(only(fail, env="prod"), "GET", "/orders")
    assert answer.is_problem(500, "internal_error")
    assert b"SECRET-DETAIL" not in answer.body
    assert [line["message"] for line in output.lines if "SECRET-DETAIL" in str(line)] == ["request.failed"]
    line = output.only("request.failed")
    assert line["error"]["type"] == "KeyError"
    assert "in fail" in line["error"]["stack"]
    assert (line["request_id"], line["method"], line["path"]) == (answer.header("x-request-id"), "GET", "/orders")


async def test_an_exception_handler_that_fails_itself_is_answered_and_both_errors_are_logged() -> None:
    async def fail(request: Request) -> Response:
        raise NotFoundError("User", 7)

    async def break_down(request: Request, error: Exception) -> Response:
        raise KeyError("in the handler")

    app = only(fail, env="prod")
    app.add_exception_handler(NotFoundError, break_down)
    with captured() as output:
        assert (await call(app)).is_problem(500, "internal_error")
    stack = output.only("request.failed")["error"]["stack"]
    assert "NotFoundError" in stack
    assert "in break_down" in stack


async def test_an_error_of_ours_that_an_inner_handler_answers_with_5xx_is_logged_and_counted_all_the_same() -> None:
    async def fail(request: Request) -> Response:
        raise UnavailableError("The queue is full.")

    async def answer_it(request: Request, error: Exception) -> Response:
        return PlainTextResponse("busy", status_code=503)

    app = only(fail)
    app.add_exception_handler(UnavailableError, answer_it)
    add_observability(app)
    with captured() as output:
        answer = await call(app)
    assert (answer.status, answer.body) == (503, b"busy")
    assert "The queue is full." in output.only("request.failed")["error"]["stack"]
    counted = (
        wiring_of(app)
        .get(Metrics)
        .registry.get_sample_value(
            "http_server_exceptions_total", {"route": "/{path}", "exception": "UnavailableError", "class": ""}
        )
    )
    assert counted == 1


async def test_a_4xx_is_no_failure_of_the_service() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError

    with captured() as output:
        await call(around(fail))
    assert [line["message"] for line in output.lines] == ["GET / 404"]


async def test_an_error_after_the_answer_began_is_logged_and_left_to_the_server_to_end() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError("midway")

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(chunks())

    answer = Answer()

    async def receive() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: Message) -> None:
        answer.messages.append(message)

    with captured() as output, pytest.raises(KeyError):
        await only(endpoint)(scope_of(), receive, send)
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert output.only("request.failed")["error"]["type"] == "KeyError"
    assert output.only("GET / 200")["bytes"] == 3


async def test_an_error_after_the_answer_is_complete_is_logged_and_harms_nobody() -> None:
    def fail() -> None:
        raise KeyError("in the background")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(fail))

    with captured() as output:
        answer = await call(only(endpoint))
    assert (answer.status, answer.body) == (200, b"hello")
    assert output.only("request.failed")["error"]["message"] == "'in the background'"


async def test_an_answer_with_a_header_that_would_break_it_is_a_problem_that_names_the_header() -> None:
    async def reflect(request: Request) -> Response:
        return PlainTextResponse("hello", headers={"X-Name": "a\r\nSet-Cookie: mine=1", "X-Tab": "a\tb"})

    with captured() as output:
        answer = await call(only(reflect))
    assert answer.is_problem(500, "internal_error")
    assert "in a header: x-name." in answer.json["detail"]
    assert "Set-Cookie" not in str(output.only("request.failed"))


async def test_an_app_that_does_not_answer_is_answered_for() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    assert (await call(around(silent))).is_problem(500, "internal_error")


async def test_head_gets_the_headers_of_a_problem_without_its_body() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError

    answer = await call(around(fail), "HEAD")
    assert (answer.status, answer.body) == (404, b"")
    assert int(answer.header("content-length")) > 0
