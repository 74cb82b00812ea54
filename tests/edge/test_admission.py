"""How many handlers run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from svc_infra.edge.edge import EdgeMiddleware
from svc_infra.obs.add import add_observability
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import Answer, around, call, edged, only, scope_of
from tests.obs.log_capture import captured

NEVER = 3600.0


class Gate:
    """A handler that runs until it is let go."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.changed = asyncio.Condition()
        self.open = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        self.running += 1
        self.most = max(self.most, self.running)
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.open.wait()
            return PlainTextResponse("done")
        finally:
            self.running -= 1

    async def runs(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.running == count)


def gated(gate: Gate, **edge: Any) -> Starlette:
    async def endpoint(request: Request) -> Response:
        return await gate(request)

    return only(endpoint, edge=edge)


async def until_queued(edge: EdgeMiddleware, count: int) -> None:
    while len(edge._rules.admission._queue) < count:
        await asyncio.sleep(0)


def edge_of(app: Starlette) -> EdgeMiddleware:
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    assert isinstance(app.middleware_stack, EdgeMiddleware)
    return app.middleware_stack


async def test_no_more_handlers_run_than_may_and_the_others_follow_in_their_order() -> None:
    gate = Gate()
    order: list[int] = []
    app = gated(gate, max_concurrency=3, max_queue=20, queue_timeout_seconds=NEVER)

    async def one(number: int) -> Answer:
        answer = await call(app)
        order.append(number)
        return answer

    tasks = [asyncio.create_task(one(number)) for number in range(10)]
    await gate.runs(3)
    await until_queued(edge_of(app), 7)
    gate.open.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 10
    assert (gate.most, order) == (3, list(range(10)))


async def test_who_comes_when_the_queue_is_full_is_refused_at_once() -> None:
    gate = Gate()
    app = gated(gate, max_concurrency=1, max_queue=1, queue_timeout_seconds=NEVER)
    add_observability(app)
    with captured() as output:
        tasks = [asyncio.create_task(call(app)) for _ in range(2)]
        await gate.runs(1)
        await until_queued(edge_of(app), 1)
        refused = await call(app)
        assert refused.is_problem(503, "unavailable")
        assert refused.header("retry-after") == "1"
        gate.open.set()
        assert [answer.status for answer in await asyncio.gather(*tasks)] == [200, 200]
    registry = wiring_of(app).get(Metrics).registry
    assert registry.get_sample_value("http_server_requests_shed_total", {"reason": "queue_full"}) == 1
    assert not [line for line in output.lines if line["level"] == "ERROR"]
    assert [line["status"] for line in output.lines].count(503) == 1


async def test_who_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    gate = Gate()
    app = gated(gate, max_concurrency=1, queue_timeout_seconds=0.01)
    first = asyncio.create_task(call(app))
    await gate.runs(1)
    assert (await call(app)).is_problem(503, "unavailable")
    assert not edge_of(app)._rules.admission._queue
    gate.open.set()
    assert (await first).status == 200
    assert (await call(app)).status == 200


async def test_a_client_that_is_cancelled_in_the_queue_gives_its_place_to_the_next() -> None:
    gate = Gate()
    app = gated(gate, max_concurrency=1, queue_timeout_seconds=NEVER)
    tasks = [asyncio.create_task(call(app)) for _ in range(3)]
    await gate.runs(1)
    await until_queued(edge_of(app), 2)
    gate.open.set()  # the first is about to leave, and to hand its place to the second
    while len(edge_of(app)._rules.admission._queue) == 2:
        await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answer.status for answer in answers if isinstance(answer, Answer)] == [200, 200]
    assert not edge_of(app)._rules.admission._running


async def test_probes_are_never_refused() -> None:
    gate = Gate()

    async def live(request: Request) -> Response:
        return PlainTextResponse("alive")

    async def endpoint(request: Request) -> Response:
        return await gate(request)

    app = edged(
        Starlette(routes=[Route("/_ops/live", live), Route("/", endpoint)]), edge={"max_concurrency": 1, "max_queue": 0}
    )
    first = asyncio.create_task(call(app))
    await gate.runs(1)
    assert (await call(app)).status == 503
    assert (await call(app, path="/_ops/live")).body == b"alive"
    assert (await call(app)).status == 503
    gate.open.set()
    assert (await first).status == 200


async def test_a_stream_takes_no_place_once_it_has_begun() -> None:
    more = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            await more.wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    app = only(endpoint, edge={"max_concurrency": 1, "max_queue": 0})
    began = [asyncio.Event() for _ in range(3)]

    async def stream(number: int) -> None:
        async def receive() -> Message:
            await more.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body"):
                began[number].set()

        await app(scope_of(), receive, send)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(stream(number)))
        await began[number].wait()
    more.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("max_queue", "status"), [(1, 200), (0, 503)])
async def test_a_client_that_sends_slowly_takes_no_place_and_waits_for_one_when_it_is_done(
    max_queue: int, status: int
) -> None:
    rest, may_end, parts = asyncio.Event(), asyncio.Event(), [b"a"]

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        if request.url.path == "/busy":
            await may_end.wait()
        return PlainTextResponse(body)

    edge = {"max_concurrency": 1, "max_queue": max_queue, "queue_timeout_seconds": NEVER, "handler_timeout_seconds": 60}
    app = only(endpoint, edge=edge)
    admission, answer = edge_of(app)._rules.admission, Answer()

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": True}
        await rest.wait()
        return {"type": "http.request", "body": b"b", "more_body": False}

    async def send(message: Message) -> None:
        answer.messages.append(message)

    async with asyncio.timeout(10):
        slow = asyncio.create_task(app(scope_of("POST"), receive, send))
        while parts or admission._running:
            await asyncio.sleep(0.001)
        assert (await call(app)).status == 200
        busy = asyncio.create_task(call(app, path="/busy"))
        while not admission._running:
            await asyncio.sleep(0)
        rest.set()
        if max_queue:
            await until_queued(edge_of(app), 1)
            assert answer.messages == []
            may_end.set()
        await slow
        assert answer.status == status
        assert answer.body == b"ab" if status == 200 else answer.is_problem(503, "unavailable")
        may_end.set()
        assert (await busy).status == 200
        assert not admission._running


async def test_many_at_random_never_exceed_the_limit_and_leave_nothing_behind() -> None:
    most = running = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        try:
            number = int(scope["path"][1:])
            for _ in range(number % 7):
                await asyncio.sleep(0)
            if number % 5 == 0:
                raise KeyError
            if number % 11 == 0:
                await asyncio.get_running_loop().create_future()
        finally:
            running -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    limits = {"max_concurrency": 4, "max_queue": 500, "queue_timeout_seconds": NEVER, "handler_timeout_seconds": 0.01}
    edge = around(app, edge=limits)
    tasks = [asyncio.create_task(call(edge, path=f"/{number}")) for number in range(300)]
    for task in tasks[::13]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    statuses = {answer.status for answer in answers if isinstance(answer, Answer)}
    assert statuses == {200, 500, 504}
    assert most <= 4
    assert not edge._rules.admission._running
    assert not edge._rules.admission._queue
