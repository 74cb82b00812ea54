"""How long handlers may run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from svc_infra.obs.context import allow_seconds, seconds_left
from tests.edge.test_admission import NEVER, Gate, edge_of, until_queued
from tests.middleware.asgi import call, edged, only, scope_of
from tests.obs.log_capture import captured


async def hang(request: Request) -> Response:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_a_handler_that_takes_too_long_is_cancelled_and_answered_once() -> None:
    cancelled = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        try:
            return await hang(request)
        finally:
            cancelled.set()

    app = only(endpoint, edge={"handler_timeout_seconds": 0.02})
    with captured() as output:
        answer = await call(app)
    assert answer.is_problem(504, "deadline_exceeded")
    assert cancelled.is_set()
    assert "in hang" in output.only("request.failed")["error"]["stack"]  # where it was
    assert (await call(app)).status == 504
    assert not edge_of(app)._rules.admission._running


async def test_after_the_deadline_the_task_is_as_it_was() -> None:
    task = asyncio.current_task()
    assert task is not None
    await call(only(hang, edge={"handler_timeout_seconds": 0.02}))
    assert task.cancelling() == 0


async def test_a_handler_that_swallows_its_end_may_still_answer_itself_and_once() -> None:
    async def endpoint(request: Request) -> Response:
        try:
            return await hang(request)
        except asyncio.CancelledError:
            return PlainTextResponse("partial")

    task = asyncio.current_task()
    assert task is not None
    assert (await call(only(endpoint, edge={"handler_timeout_seconds": 0.02}))).body == b"partial"
    assert task.cancelling() == 0


async def test_a_handler_that_is_cancelled_by_somebody_else_stays_cancelled() -> None:
    app = only(hang, edge={"handler_timeout_seconds": NEVER})
    task = asyncio.create_task(call(app))
    while not edge_of(app)._rules.admission._running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_that_has_begun_has_no_deadline_and_gets_no_second_start() -> None:
    more = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            await more.wait()
            yield "b"

        return StreamingResponse(parts())

    async def unblock(request: Request) -> Response:
        more.set()
        return await hang(request)

    app = edged(
        Starlette(routes=[Route("/stream", endpoint), Route("/hang", unblock)]), edge={"handler_timeout_seconds": 0.05}
    )
    messages: list[Message] = []

    async def receive() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    stream = asyncio.create_task(app(scope_of(path="/stream"), receive, send))
    while len(messages) < 2:
        await asyncio.sleep(0)
    late = asyncio.create_task(call(app, path="/hang"))
    await late  # began after the stream, and its deadline has passed
    await stream
    assert [message["type"] for message in messages].count("http.response.start") == 1
    assert b"".join(message.get("body", b"") for message in messages) == b"ab"


async def test_the_handler_knows_how_much_time_is_left_and_may_take_more() -> None:
    seen: list[float] = []

    async def endpoint(request: Request) -> Response:
        seen.append(seconds_left())
        allow_seconds(NEVER)
        seen.append(seconds_left())
        await asyncio.sleep(0.05)  # past the deadline that was
        return PlainTextResponse("a long report")

    assert (await call(only(endpoint, edge={"handler_timeout_seconds": 0.02}))).body == b"a long report"
    assert 0 < seen[0] <= 0.02
    assert seen[1] > 1000


async def test_what_follows_the_beginning_of_an_answer_has_any_time() -> None:
    left: dict[str, float] = {}

    async def endpoint(request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            left["stream"] = seconds_left()

        def work() -> None:
            left["background"] = seconds_left()

        left["handler"] = seconds_left()
        return StreamingResponse(parts(), background=BackgroundTask(work))

    assert (await call(only(endpoint, edge={"handler_timeout_seconds": 60}))).body == b"a"
    assert left.pop("handler") <= 60
    assert left == {"stream": float("inf"), "background": float("inf")}


async def test_one_that_takes_more_time_takes_none_from_the_others() -> None:
    extended = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        if request.url.path == "/long":
            allow_seconds(NEVER)
            await asyncio.sleep(0.05)  # the time that it had is over, and it goes on
            extended.set()
        return await hang(request)

    app = only(endpoint, edge={"handler_timeout_seconds": 0.02})
    long = asyncio.create_task(call(app, path="/long"))
    await extended.wait()
    assert (await call(app)).status == 504
    long.cancel()


async def test_without_a_limit_a_handler_may_take_any_time() -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(seconds_left()))

    app = only(endpoint, edge={"handler_timeout_seconds": 0})
    assert (await call(app)).body == b"inf"
    assert seconds_left() == float("inf")


async def test_the_time_in_the_queue_is_no_part_of_the_handlers_time() -> None:
    gate, left = Gate(), []

    async def endpoint(request: Request) -> Response:
        left.append(seconds_left())
        return await gate(request)

    app = only(endpoint, edge={"max_concurrency": 1, "handler_timeout_seconds": 100, "queue_timeout_seconds": NEVER})
    tasks = [asyncio.create_task(call(app)) for _ in range(2)]
    await gate.runs(1)
    await until_queued(edge_of(app), 1)
    await asyncio.sleep(0.02)
    gate.open.set()
    await asyncio.gather(*tasks)
    assert left == pytest.approx([100, 100], abs=0.01)


def test_an_app_that_runs_again_in_another_loop_still_keeps_its_deadlines() -> None:
    app = only(hang, edge={"handler_timeout_seconds": 0.02})
    for _ in range(2):
        assert asyncio.run(call(app)).status == 504
