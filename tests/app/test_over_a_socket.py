"""What only a real server and a real client show: answers that break off, HEAD, and a shutdown that waits."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from svc_infra.errors import NotFoundError
from svc_infra.wiring import Part, wiring_of
from tests.app.conftest import Factory
from tests.app.serving import served


@pytest.mark.parametrize("parts_before", [0, 1])
@pytest.mark.parametrize("error", [ValueError("broken"), NotFoundError("Row", 7)], ids=["unknown", "known"])
def test_a_stream_that_fails_breaks_off_and_never_looks_complete(
    error: Exception, parts_before: int, make: Factory
) -> None:
    app = make("prod")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(parts_before):
                yield b"part"
            raise error

        return StreamingResponse(parts())

    with served(app) as (_, client):
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get("/stream")
        assert client.get("/_ops/live").status_code == 200


def test_a_background_task_that_fails_does_not_spoil_the_answer(make: Factory) -> None:
    app = make()

    async def fail() -> None:
        raise RuntimeError("broken")

    @app.get("/later")
    async def later() -> Response:
        return Response("done", background=BackgroundTask(fail))

    with served(app) as (_, client):
        for _ in range(2):
            assert client.get("/later").text == "done"


@pytest.mark.parametrize("path", ["/nowhere", "/broken", "/docs", "/_assets/swagger-ui.css"])
def test_head_is_answered_as_get_without_a_body(path: str, make: Factory) -> None:
    app = make("local")

    @app.api_route("/broken", methods=["GET", "HEAD"])
    async def broken() -> None:
        raise RuntimeError("broken")

    with served(app) as (_, client):
        get, head = client.get(path), client.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_a_shutdown_waits_for_the_requests_in_flight_before_the_rooms_stop(make: Factory) -> None:
    diary: list[str] = []
    arrived, released = threading.Event(), threading.Event()

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        yield
        diary.append("room stopped")

    app = make()
    wiring_of(app).add(Part("room", run=room))

    @app.get("/slow")
    def slow() -> str:
        arrived.set()
        assert released.wait(timeout=10)
        diary.append("request answered")
        return "done"

    with served(app) as (server, client), ThreadPoolExecutor(max_workers=1) as threads:
        answer = threads.submit(client.get, "/slow")
        assert arrived.wait(timeout=10)
        server.should_exit = True
        assert server.stopping.wait(timeout=10)
        released.set()
        assert answer.result().json() == "done"
    assert diary == ["request answered", "room stopped"]
