"""A small HTTP/1.1 load generator: many keep-alive connections, one request in flight on each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import cast


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of load saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def per_second(self) -> float:
        """Requests answered per second."""
        return self.requests / self.seconds


class _Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is complete (answers carry Content-Length)."""

    def __init__(self, request: bytes, until: float, latencies: list[float], done: asyncio.Future[None]) -> None:
        self.request, self.until, self.latencies, self.done = request, until, latencies, done
        self.buffer = b""
        self.errors = 0
        self.started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def _send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        now = time.perf_counter()
        self.latencies.append(now - self.started)
        self.errors += not head.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        if now < self.until:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def _content_length(head: bytes) -> int:
    position = head.lower().index(b"content-length:")
    return int(head[position + 15 : position + 30].split(b"\r", 1)[0])


async def load(port: int, path: str, *, connections: int = 32, seconds: float = 2.0) -> Load:
    """Load a server on loopback.

    Args:
        port: Where it listens on 127.0.0.1.
        path: What to GET.
        connections: Requests in flight at once.
        seconds: How long.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    start = time.perf_counter()
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    protocols = []
    for end in ends:
        made = partial(_Connection, request, start + seconds, latencies, end)
        _, protocol = await loop.create_connection(made, "127.0.0.1", port)
        protocols.append(protocol)
    async with asyncio.timeout(seconds + 10):
        await asyncio.gather(*ends)
    elapsed = time.perf_counter() - start
    latencies.sort()
    return Load(
        requests=len(latencies),
        seconds=elapsed,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
        errors=sum(protocol.errors for protocol in protocols),
    )
