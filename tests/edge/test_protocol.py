"""What a client sends before any app sees it, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from svc_infra.config.serving import EdgeSettings
from svc_infra.edge.protocol import BoundedProtocol, bound
from svc_infra.wiring import wiring_of
from tests.edge.test_uvicorn import LIMIT_BYTES, Service, request, status_of

LIMITS = EdgeSettings(max_url_bytes=1000, max_header_bytes=3000, header_timeout_seconds=20)
IMPATIENT = LIMITS.model_copy(update={"header_timeout_seconds": 0.05})
READ_BYTES = 256 * 1024
"""The most that the event loop hands over at once."""

Connection = tuple[StreamReader, StreamWriter]


@asynccontextmanager
async def serving(
    app: Starlette, limits: EdgeSettings, made: list[BoundedProtocol], **uvicorns: Any
) -> AsyncIterator[int]:
    """Serve the app on a free port until the block ends, and remember the connections."""

    def protocol(**given: Any) -> BoundedProtocol:
        made.append(BoundedProtocol(**given, limits=limits))
        return made[-1]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        options: dict[str, Any] = {"http": protocol, "log_config": None, "timeout_graceful_shutdown": 5, **uvicorns}
        server = uvicorn.Server(uvicorn.Config(app, **options))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def connected(
    service: Service, limits: EdgeSettings = LIMITS, made: list[BoundedProtocol] | None = None, **uvicorns: Any
) -> AsyncIterator[Connection]:
    async with asyncio.timeout(20), serving(service.app, limits, [] if made is None else made, **uvicorns) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def refusal(reader: StreamReader) -> tuple[int, dict[str, Any]]:
    """The problem that a connection ends with."""
    status, head = await status_of(reader)
    body = await reader.read()
    assert b"connection: close\r\n" in head
    assert b"content-type: application/problem+json\r\n" in head
    assert f"content-length: {len(body)}\r\n".encode() in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert f"x-request-id: {problem['request_id']}\r\n".encode() in head
    return status, problem


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.mark.parametrize(
    "part", [b"X-A: " + b"a" * 100 + b"\r\n", b"a" * 100, b"GET /"], ids=["headers", "one header", "more of it"]
)
async def test_headers_without_an_end_are_refused_soon_after_the_limit(part: bytes, service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nX-Long: ")
        sent, answer = 0, asyncio.create_task(refusal(reader))
        while not answer.done():
            writer.write(part * 10)
            sent += len(part) * 10
            await writer.drain()
            await asyncio.sleep(0)
        status, problem = await answer
        assert (status, problem["code"]) == (431, "headers_too_large")
        assert sent < 2 * READ_BYTES + 4000
    assert wiring_of(service.app).in_flight == 0


async def test_an_address_without_an_end_is_refused(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"GET /")
        answer = asyncio.create_task(refusal(reader))
        while not answer.done():
            writer.write(b"a" * 500)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answer)[0] == 431


@pytest.mark.parametrize(
    "sent", [b"G", b"GET / HTTP/1.1\r\nHost: test\r\n", b"POST /upload HTTP/1.1\r\nContent-Length: 5\r\nX: "]
)
async def test_a_request_that_is_not_complete_in_time_is_told_so(sent: bytes, service: Service) -> None:
    async with connected(service, IMPATIENT) as (reader, writer):
        writer.write(sent)
        status, problem = await refusal(reader)
        assert (status, problem["code"]) == (408, "request_timeout")


async def test_more_bytes_bring_no_more_time(service: Service) -> None:
    async with connected(service, IMPATIENT) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        answer = asyncio.create_task(refusal(reader))
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=0.005)
        assert (await answer)[0] == 408


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(sent: bytes, service: Service) -> None:
    async with connected(service, IMPATIENT) as (reader, writer):
        writer.write(sent)
        assert await reader.read() == b""


async def test_only_what_comes_before_an_app_has_the_request_is_timed(service: Service) -> None:
    made: list[BoundedProtocol] = []
    async with connected(service, made=made) as (reader, writer):
        writer.write(request("POST", "/upload", "Content-Length: 2") + b"a")
        await service.read.wait()
        assert made[0]._deadline is None  # a body has a limit of its own
        writer.write(b"b")
        assert (await status_of(reader))[0] == 200
        await reader.readexactly(len(b"saved"))
        writer.write(b"GET /stream HTTP/1.1\r\n")
        while made[0]._deadline is None:
            await asyncio.sleep(0)
        writer.write(b"Host: test\r\n\r\n")
        await reader.readuntil(b"data: 1\n\n")
        assert made[0]._deadline is None  # an answer may take its time
        service.more.set()
        await reader.readuntil(b"data: 2\n\n\r\n0\r\n\r\n")
        writer.write(b"GET / HT")
        while made[0]._deadline is None:
            await asyncio.sleep(0)
        made[0]._give_up()
        assert (await refusal(reader))[0] == 408


async def test_what_remains_of_a_refused_body_is_not_read_for_ever(service: Service) -> None:
    async with connected(service, IMPATIENT) as (reader, writer):
        writer.write(request("POST", "/upload", f"Content-Length: {LIMIT_BYTES + 100}"))
        assert (await status_of(reader))[0] == 413
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.005)
        if ended.exception() is None:  # it may be a reset
            assert b"HTTP/1.1" not in ended.result()


async def test_a_large_body_and_many_requests_count_as_no_headers(service: Service) -> None:
    async with connected(service) as (reader, writer):
        for _ in range(3):
            writer.write(request("POST", "/upload", "Content-Length: 900") + b"x" * 900)
            assert (await status_of(reader))[0] == 200
            await reader.readexactly(len(b"saved"))
        upload = request("POST", "/upload", "Content-Length: 900", "X-A: " + "a" * 800) + b"x" * 900
        writer.write(upload * 5 + b"GET / HT")
        for _ in range(5):
            assert (await status_of(reader))[0] == 200
            await reader.readexactly(len(b"saved"))
        writer.write(b"TP/1.1\r\nHost: test\r\n\r\n")
        assert (await status_of(reader))[0] == 200
    assert service.saved == [900] * 8


async def test_endless_headers_behind_a_request_that_is_being_answered_end_the_connection(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("GET", "/stream") + b"GET / HTTP/1.1\r\n")
        await reader.readuntil(b"data: 1\n\n")
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(b"X-A: " + b"a" * 1000 + b"\r\n")
            await asyncio.wait([ended], timeout=0.001)
        if ended.exception() is None:  # it may be a reset
            assert b"HTTP/1.1" not in ended.result()
        await service.closed.wait()


CHUNKED = request("POST", "/upload", "Transfer-Encoding: chunked")


async def test_trailer_fields_never_become_headers_of_their_request_nor_of_the_next(service: Service) -> None:
    seen: list[list[bytes]] = []

    async def names(request: Request) -> PlainTextResponse:
        await request.body()
        seen.append([name for name, _ in request.scope["headers"]])
        return PlainTextResponse("seen")

    service.app.routes.append(Route("/names", names, methods=["POST"]))
    chunked = request("POST", "/names", "Transfer-Encoding: chunked")
    async with connected(service) as (reader, writer):
        writer.write(chunked + b"2\r\nhe\r\n0\r\nX-Internal: 1\r\nAuthorization: mine\r\n\r\n" + chunked + b"0\r\n\r\n")
        for _ in range(2):
            assert (await status_of(reader))[0] == 200
            await reader.readexactly(len(b"seen"))
    assert seen == [[b"host", b"transfer-encoding"]] * 2


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"0\r\nX: ", b"a" * 1000), (b"0\r\n", b"X: " + b"a" * 100 + b"\r\n"), (b"1;a=", b"a" * 1000)],
    ids=["one trailer field", "trailer fields", "a chunk extension"],
)
@pytest.mark.parametrize("path", ["/upload", "/nowhere"], ids=["while it is read", "once it is answered"])
async def test_what_is_neither_headers_nor_body_is_bounded_too(
    begin: bytes, more: bytes, path: str, service: Service
) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("POST", path, "Transfer-Encoding: chunked") + begin)
        if path == "/nowhere":
            status, head = await status_of(reader)
            assert status == 404
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        sent, ended = 0, asyncio.create_task(reader.read())
        while not ended.done():
            writer.write(more)
            sent += len(more)
            await asyncio.sleep(0)
        assert sent < 2 * READ_BYTES
        if ended.exception() is None:  # it may be a reset
            assert ended.result() == b""
    assert service.saved == []


async def test_a_body_in_many_small_chunks_counts_as_no_headers(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(CHUNKED)
        for _ in range(900):
            writer.write(b"1;ext=1234\r\nx\r\n")
        writer.write(b"0\r\n\r\n")
        assert (await status_of(reader))[0] == 200
    assert service.saved == [900]


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize(
    ("framing", "body", "saved"),
    [
        ("Content-Length: 5", b"hello", 5),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", 5),
        ("Content-Length: 0", b"", 0),
        ("X-None: 1", b"", 0),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_request_that_offers_another_protocol_is_read_to_its_end_in_this_one(
    framing: str, body: bytes, saved: int, in_pieces: bool, service: Service
) -> None:
    async with connected(service) as (reader, writer):
        for _ in range(2):  # and so is what follows
            sent = request("POST", "/upload", *UPGRADE, framing) + body + request("GET", "/")
            for piece in [sent[at : at + 1] for at in range(len(sent))] if in_pieces else [sent]:
                writer.write(piece)
                await asyncio.sleep(0)
            for answer in (b"saved", b"hello"):
                assert (await status_of(reader))[0] == 200
                assert await reader.readexactly(len(answer)) == answer
    assert service.saved == [saved] * 2


async def test_a_row_of_such_offers_is_no_load(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request("GET", "/", *UPGRADE[:2]) * 500)
        for _ in range(500):
            assert (await status_of(reader))[0] == 200
            await reader.readexactly(len(b"hello"))


async def test_what_is_no_http_is_a_problem(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"GET / HTTP/9.9\r\n\r\n")
        status, problem = await refusal(reader)
        assert (status, problem["code"], problem["detail"]) == (400, "bad_request", "Invalid HTTP request received.")


async def test_a_websocket_is_left_alone(service: Service) -> None:
    async with connected(service, IMPATIENT) as (reader, writer):
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        writer.write(
            request("GET", "/ws", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
        )
        assert (await status_of(reader))[0] in (403, 404)  # there is none; the protocol of websockets has said so


class Websockets(asyncio.Protocol):
    """As uvicorn's, over the library `websockets`: it answers what that has read, and nothing to what it has not."""

    def __init__(self, **_: Any) -> None:
        self.conn = SimpleNamespace(handshake_exc=None)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        else:
            self.conn.handshake_exc = ValueError("unsupported HTTP method; expected GET")


@pytest.mark.parametrize(
    ("method", "path", "header", "status"),
    [
        ("GET", "/ws", "X-A: a", 101),
        ("POST", "/ws", "X-A: a", 400),
        ("GET", "/" + "q" * 1000, "X-A: a", 414),
        ("GET", "/ws", "X-A: " + "a" * 3000, 431),
    ],
)
async def test_a_websocket_that_nobody_can_read_is_refused_instead_of_waited_for(
    method: str, path: str, header: str, status: int, service: Service
) -> None:
    async with connected(service, ws=Websockets) as (reader, writer):
        writer.write(request(method, path, "Connection: upgrade", "Upgrade: websocket", header))
        assert (await (status_of(reader) if status == 101 else refusal(reader)))[0] == status


def test_a_server_with_another_protocol_keeps_it() -> None:
    config = uvicorn.Config("app", http="h11")
    config.http_protocol_class = H11Protocol
    bound(config, LIMITS)
    assert config.http_protocol_class is H11Protocol
    config.http_protocol_class = HttpToolsProtocol
    bound(config, LIMITS)
    made = config.http_protocol_class
    assert isinstance(made, partial)
    assert made.func is BoundedProtocol
    assert made.keywords == {"limits": LIMITS}


async def test_an_app_bounds_the_server_that_it_finds_itself_in(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from svc_infra import create_app\napp = create_app()\n")
    environment = {**os.environ, "EDGE_HEADER_TIMEOUT_SECONDS": "0.05", "LOG_LEVEL": "ERROR"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "plain:app",
            "--fd",
            str(listener.fileno()),
            "--app-dir",
            str(tmp_path),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, pass_fds=[listener.fileno()], cwd=tmp_path
        )
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(b"GET / HTTP/1.1\r\n")
                assert (await refusal(reader))[0] == 408
                writer.close()
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
