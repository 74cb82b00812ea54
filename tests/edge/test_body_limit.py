from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from tests.middleware.asgi import around, call, edged, only


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def test_a_body_up_to_the_limit_is_accepted() -> None:
    app = only(echo, max_body_bytes=10)
    assert (await call(app, "POST", body=b"x" * 10, headers=[("content-length", "10")])).body == b"10"
    assert (await call(app, "POST", body=[b"x" * 4, b"x" * 6, b""])).body == b"10"


async def test_a_body_that_says_it_is_too_large_is_refused_before_the_handler_runs() -> None:
    async def endpoint(request: Request) -> Response:
        raise AssertionError("the handler ran")

    answer = await call(only(endpoint, max_body_bytes=10), "POST", body=b"x" * 11, headers=[("content-length", "11")])
    assert answer.is_problem(413, "payload_too_large")


@pytest.mark.parametrize(
    "declared", [[], [("content-length", "5")], [("content-length", "-1")], [("content-length", "x")]]
)
async def test_a_body_that_is_larger_than_it_says_is_refused(declared: list[tuple[str, str]]) -> None:
    answer = await call(only(echo, max_body_bytes=10), "POST", body=[b"x" * 6, b"x" * 6], headers=declared)
    assert answer.is_problem(413, "payload_too_large")


async def test_a_handler_that_overlooks_the_cut_cannot_answer_as_if_it_had_the_whole_body() -> None:
    async def stubborn(request: Request) -> Response:
        try:
            await request.body()
        except HTTPException:
            return PlainTextResponse("saved what there was")
        return PlainTextResponse("saved all")

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(4):
            try:
                await receive()
            except HTTPException:
                continue

    body = [b"x" * 6, b"x" * 6, b"x"]
    assert (await call(only(stubborn, max_body_bytes=10), "POST", body=body)).is_problem(413, "payload_too_large")
    assert (await call(around(silent, max_body_bytes=10), "POST", body=body)).is_problem(413, "payload_too_large")


async def test_fastapi_does_not_take_a_cut_body_for_an_unreadable_one() -> None:
    api = FastAPI()
    app = edged(api, max_body_bytes=10)

    @api.post("/")
    async def endpoint(values: list[int]) -> int:
        return len(values)

    json = [("content-type", "application/json")]
    assert (await call(app, "POST", body=[b"[1,2", b",3]"], headers=json)).body == b"3"
    assert (await call(app, "POST", body=[b"[1,2,3", b",4,5,6]"], headers=json)).is_problem(413, "payload_too_large")
