"""The edge behind a real server, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from svc_infra.wiring import Phase, wiring_of
from tests.middleware.asgi import edged
from tests.obs.log_capture import captured

LIMIT_BYTES = 1000


class Service:
    """An app with one stream and one upload, and what happened to them."""

    def __init__(self, **settings: Any) -> None:
        self.more, self.closed, self.read = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.saved: list[int] = []
        routes = [
            Route("/stream", self.stream),
            Route("/broken", self.broken),
            Route("/hang", self.hang),
            Route("/upload", self.upload, methods=["POST"]),
            Route("/", lambda request: PlainTextResponse("hello")),
        ]
        self.app = edged(Starlette(routes=routes), max_body_bytes=LIMIT_BYTES, env="prod", **settings)

    async def hang(self, request: Request) -> Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            try:
                yield "data: 1\n\n"
                await self.more.wait()
                yield "data: 2\n\n"
            finally:
                self.closed.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def broken(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "part"
            raise KeyError("midway")

        return StreamingResponse(parts())

    async def upload(self, request: Request) -> Response:
        self.read.set()
        self.saved.append(len(await request.body()))
        return PlainTextResponse("saved")


@asynccontextmanager
async def serving(app: Starlette, **options: Any) -> AsyncIterator[int]:
    """Serve the app on a free port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5, **options))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def service() -> Service:
    return Service()


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    async with asyncio.timeout(20), serving(service.app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


def request(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


async def status_of(reader: StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split()[1]), head.lower()


async def test_events_reach_the_client_one_by_one(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("GET", "/stream"))
        status, head = await status_of(reader)
        assert status == 200
        assert b"x-request-id: " in head
        await reader.readuntil(b"data: 1\n\n")
        service.more.set()
        await reader.readuntil(b"data: 2\n\n")


async def test_a_client_that_goes_away_ends_the_stream(service: Service) -> None:
    with captured() as output:
        async with connected(service) as (reader, writer):
            writer.write(request("GET", "/stream"))
            await reader.readuntil(b"data: 1\n\n")
            writer.close()
            await service.closed.wait()
    assert wiring_of(service.app).in_flight == 0
    assert [line["status"] for line in output.lines if line["logger"] == "svc_infra.access"] == [200]


async def test_a_client_that_goes_away_in_the_middle_of_its_body_saves_nothing(service: Service) -> None:
    with captured() as output:
        async with connected(service) as (_, writer):
            writer.write(request("POST", "/upload", "Content-Length: 100") + b"x" * 50)
            await service.read.wait()
            writer.close()
    assert service.saved == []
    assert not [line for line in output.lines if line["level"] == "ERROR"]


async def test_a_stream_that_breaks_is_seen_to_be_broken(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("GET", "/broken"))
        assert (await status_of(reader))[0] == 200
        rest = await reader.read()
        assert b"part" in rest
        assert not rest.endswith(b"0\r\n\r\n")


async def test_a_body_that_says_it_is_too_large_is_refused_without_waiting_for_it(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("POST", "/upload", f"Content-Length: {LIMIT_BYTES + 1}"))
        status, head = await status_of(reader)
        assert (status, b"application/problem+json" in head) == (413, True)
    assert service.saved == []


async def test_a_chunked_body_over_the_limit_is_refused_while_it_is_being_sent(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("POST", "/upload", "Transfer-Encoding: chunked"))
        writer.write(b"200\r\n" + b"x" * 0x200 + b"\r\n200\r\n" + b"x" * 0x200 + b"\r\n")  # the last chunk never comes
        status, head = await status_of(reader)
        assert (status, b"application/problem+json" in head) == (413, True)
    assert service.saved == []


async def test_a_connection_goes_on_after_a_refused_body(service: Service) -> None:
    async with connected(service) as (reader, writer):
        body = b"x" * (LIMIT_BYTES + 1)
        writer.write(request("POST", "/upload", f"Content-Length: {len(body)}") + body)
        status, head = await status_of(reader)
        assert status == 413
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        writer.write(request("GET", "/"))
        assert (await status_of(reader))[0] == 200


async def test_the_app_starts_and_drains_with_the_server(service: Service) -> None:
    wiring = wiring_of(service.app)
    async with asyncio.timeout(20):
        async with serving(service.app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/stream"))
            await reader.readuntil(b"data: 1\n\n")
            assert (wiring.phase, wiring.in_flight) == (Phase.READY, 1)
            service.more.set()
            await reader.readuntil(b"data: 2\n\n")
            writer.close()
    assert (wiring.phase, wiring.in_flight) == (Phase.STOPPED, 0)


async def test_a_client_that_sends_its_body_too_slowly_is_told_so_and_cut_off() -> None:
    slow = Service(edge={"body_timeout_seconds": 0.1})
    async with connected(slow) as (reader, writer):
        writer.write(request("POST", "/upload", "Content-Length: 100") + b"x")
        status, head = await status_of(reader)
        assert (status, b"application/problem+json" in head, b"connection: close" in head) == (408, True, True)
        await reader.read()  # to the end of the connection
    assert slow.saved == []
    assert wiring_of(slow.app).in_flight == 0


async def test_what_is_sent_beyond_the_declared_length_is_no_part_of_the_body(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("POST", "/upload", "Content-Length: 5") + b"x" * 5)
        assert (await status_of(reader))[0] == 200
        await reader.readexactly(len(b"saved"))
        writer.write(b"y" * 500 + b"\r\n\r\n")  # no request, so the server refuses it and closes
        assert (await status_of(reader))[0] == 400
        await reader.read()
    assert service.saved == [5]


async def test_large_headers_and_addresses_are_refused_with_a_problem(service: Service) -> None:
    async with connected(service) as (reader, writer):
        for part, expected in (
            (request("GET", "/" + "x" * 9000), 414),
            (request("GET", "/", "A: " + "x" * 40_000), 431),
        ):
            writer.write(part)
            status, head = await status_of(reader)
            assert (status, b"application/problem+json" in head) == (expected, True)
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))


async def test_clients_that_never_finish_their_headers_hold_up_nobody(service: Service) -> None:
    async with asyncio.timeout(20), serving(service.app) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nX-Slow: ")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", "/"))
        assert (await status_of(reader))[0] == 200
        assert wiring_of(service.app).in_flight == 0  # the app never sees them
        for _, each in [*slow, (reader, writer)]:
            each.close()


async def test_a_handler_that_takes_too_long_is_answered_over_the_socket() -> None:
    slow = Service(edge={"handler_timeout_seconds": 0.1})
    async with connected(slow) as (reader, writer):
        writer.write(request("GET", "/hang"))
        status, head = await status_of(reader)
        assert (status, b"application/problem+json" in head) == (504, True)
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        writer.write(request("GET", "/"))
        assert (await status_of(reader))[0] == 200
