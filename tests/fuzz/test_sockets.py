"""Broken and hostile HTTP/1.1 over real sockets: the right status, nothing leaked, nothing stuck.

Slow and large requests are in `tests/edge/test_uvicorn.py`.
"""

from __future__ import annotations

import asyncio
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svc_infra.edge.edge import EdgeMiddleware
from svc_infra.edge.protocol import BoundedProtocol
from svc_infra.wiring import wiring_of
from tests.edge.test_uvicorn import Service, request, serving, status_of

Connection = tuple[StreamReader, StreamWriter]

TIMEOUT_SECONDS = 20


class Serving(Service):
    """The service, while a server of it runs."""

    port: int

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """A connection of its own, for a while."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                yield reader, writer
            finally:
                writer.close()

    async def said_to(self, sent: bytes, *, ends: bool = True) -> bytes:
        """All that is answered until the server closes the connection."""
        async with self.connected() as (reader, writer):
            writer.write(sent)
            if ends:
                writer.write_eof()
            return await reader.read()

    async def is_well(self) -> None:
        """Insist that the service answers, and holds on to nothing of the requests before."""
        async with self.connected() as (reader, writer):
            writer.write(request("GET", "/"))
            assert (await status_of(reader))[0] == 200
            while wiring_of(self.app).in_flight:
                await asyncio.sleep(0)
        edge = self.app.middleware_stack
        assert isinstance(edge, EdgeMiddleware)
        admission = edge._rules.admission
        assert (len(admission._running), len(admission._queue)) == (0, 0)


@pytest.fixture
async def service() -> AsyncIterator[Serving]:
    """The service; at the end it is well, and no task of its own is left."""
    before = asyncio.all_tasks()
    made = Serving()
    async with serving(made.app, http=BoundedProtocol) as made.port:  # as every app of `create_app` is served
        yield made
        await made.is_well()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


CHUNKED = request("POST", "/upload", "Transfer-Encoding: chunked")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        request("POST", "/upload", "Content-Length: 5", "Content-Length: 6") + b"hello!",
        request("POST", "/upload", "Content-Length: 5, 6") + b"hello!",
        request("POST", "/upload", "Content-Length: 0", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + SMUGGLED,
        request("POST", "/upload", "Transfer-Encoding: chunked", "Content-Length: 4") + b"0\r\n\r\n" + SMUGGLED,
        request("POST", "/upload", "Content-Length: -1") + SMUGGLED,
        request("POST", "/upload", "Content-Length: +5") + b"hello",
        request("POST", "/upload", "Content-Length: 5x") + b"hello",
        request("POST", "/upload", "Content-Length: 99999999999999999999999") + b"hello",
        request("POST", "/upload", "Content-Length : 5") + b"hello",
        request("GET", "/", "X-A: a\x00b"),
        request("GET", "/", "X-A: a\rX-B: b"),
        request("GET", "/", "X A: a"),
        request("GET", "/", ": a"),
        request("GET", "/", "X-A: a", " folded: b").replace(b"\r\n fold", b"\r\n\x01fold"),
        b"GET / HTTP/9.9\r\nHost: test\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_a_message_that_two_readers_could_understand_differently_is_refused_and_ends_the_connection(
    sent: bytes, service: Serving
) -> None:
    answers = await service.said_to(sent, ends=False)
    assert statuses(answers) == [400]
    assert service.saved == []


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"fffffffffffffffff\r\nhello\r\n",
        b"\r\n0\r\n\r\n",
        b"5;" + b"\x00" * 10 + b"\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_a_broken_chunk_saves_nothing_and_ends_the_connection(chunks: bytes, service: Serving) -> None:
    answers = await service.said_to(CHUNKED + chunks, ends=False)
    assert statuses(answers) in ([], [400])
    assert service.saved == []


@pytest.mark.parametrize("sent", [CHUNKED + b"5\r\nhel", request("POST", "/upload", "Content-Length: 100") + b"hel"])
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(
    sent: bytes, service: Serving
) -> None:
    for _ in range(20):
        service.read.clear()
        async with service.connected() as (_, writer):
            writer.write(sent)
            await service.read.wait()  # its handler is waiting for the rest
            writer.transport.abort()
    await service.is_well()
    assert service.saved == []


async def test_ten_thousand_small_headers_are_refused_with_a_problem(service: Serving) -> None:
    async with service.connected() as (reader, writer):
        writer.write(request("GET", "/", *["A: b"] * 10_000))
        status, head = await status_of(reader)
        assert (status, b"application/problem+json" in head) == (431, True)


async def test_requests_in_a_pipeline_are_answered_in_their_order(service: Serving) -> None:
    uploads = [request("POST", "/upload", f"Content-Length: {length}") + b"x" * length for length in (1, 2000, 2, 0)]
    last = request("GET", "/", "Connection: close")
    answers = await service.said_to(b"".join([*uploads, request("GET", "/nowhere"), last]), ends=False)
    assert statuses(answers) == [200, 413, 200, 200, 404, 200]
    assert service.saved == [1, 2, 0]


pieces = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST /upload HTTP/1.1\r\n", b"GET /nowhere HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n"),
        *(b"Host: test\r\n", b"Content-Length: 5\r\n", b"Content-Length: 2000\r\n", b"Transfer-Encoding: chunked\r\n"),
        *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n"),
        *(b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"1;a=b\r\nx\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"),
        *(b"\r\n", b"\r\n", b"\n", b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b"x" * 1500, b": ", b"\x00", b"HTTP/1.1"),
    ]
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(pieces | st.binary(max_size=10), max_size=12))
async def test_whatever_is_sent_the_service_stays_well(parts: list[bytes], service: Serving) -> None:
    answers = await service.said_to(b"".join(parts))
    assert all(status < 500 for status in statuses(answers)), answers
    await service.is_well()
