"""Clients that do not read what they have asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from svc_infra.config.serving import EdgeSettings
from svc_infra.wiring import wiring_of
from tests.edge.test_protocol import serving
from tests.edge.test_uvicorn import Service, request

LIMITS = EdgeSettings(send_timeout_seconds=0.1)
PART = b"x" * 256 * 1024


class Flood(Service):
    """A service that sends more than anybody's buffers hold."""

    def __init__(self) -> None:
        super().__init__()
        self.app.routes.append(Route("/flood", self.flood))
        self.app.routes.append(Route("/large", self.large))

    async def flood(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield PART
                    await asyncio.sleep(0)  # as one that gets its parts from somewhere
            finally:
                self.closed.set()

        return StreamingResponse(parts())

    async def large(self, request: Request) -> Response:
        return Response(PART * 64)


@pytest.fixture
async def service() -> Flood:
    return Flood()


def reluctant(port: int) -> socket.socket:
    """A client with little room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


@pytest.mark.parametrize("path", ["/flood", "/large"])
async def test_a_client_that_reads_nothing_is_let_go_with_all_that_waits_for_it(path: str, service: Flood) -> None:
    async with asyncio.timeout(20), serving(service.app, LIMITS, made := []) as port:
        with reluctant(port) as client:
            client.sendall(request("GET", path))
            while not made or made[0] in made[0].connections:
                await asyncio.sleep(0.01)
        if path == "/flood":
            await service.closed.wait()
    assert wiring_of(service.app).in_flight == 0


async def test_one_that_takes_a_little_is_waited_for(service: Flood) -> None:
    patient = LIMITS.model_copy(update={"send_timeout_seconds": 3600})
    async with asyncio.timeout(20), serving(service.app, patient, made := []) as port:
        with reluctant(port) as client:
            client.sendall(request("GET", "/large"))
            while not made or made[0]._look is None:
                await asyncio.sleep(0.001)
            waiting, looking = made[0].transport.get_write_buffer_size(), made[0]._look
            made[0]._look_after(waiting + 1)  # it has taken a byte since
            assert not made[0].transport.is_closing()
            assert made[0]._look is not looking
            made[0]._look_after(waiting)
            assert made[0].transport.is_closing()
