"""A webhook receiver to test against."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

MAX_BODY_BYTES = 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """One request, as it came in; header names in lower case."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The JSON object in the body."""
        event: dict[str, Any] = json.loads(self.body)
        return event


class WebhookReceiver:
    """A real HTTP server on 127.0.0.1 that keeps what it is sent, answers as told, and can go away and come back.

    `async with WebhookReceiver() as receiver:` listens on any free port; `receiver.url` says where.

    Args:
        statuses: The answers to the first requests; 200 to all that follow.
        headers: Sent with every answer.
    """

    def __init__(self, statuses: Sequence[int] = (), *, headers: Mapping[str, str] | None = None) -> None:
        self.received: list[Received] = []
        self.statuses = list(statuses)
        self.headers = dict(headers or {})
        self._port = 0
        self._server: asyncio.Server | None = None
        self._news = asyncio.Condition()

    @property
    def url(self) -> str:
        """Where it listens, or listened before it went down."""
        return f"http://127.0.0.1:{self._port}/hook"

    async def up(self) -> None:
        """Start to listen: at first on any free port, later on the same one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=MAX_HEAD_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Stop listening: senders are refused until it is up again."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def about(self, topic: str, **payload: Any) -> list[Received]:
        """What was received on this topic with these values in its payload."""
        return [
            one
            for one in self.received
            if one.event["topic"] == topic and payload.items() <= one.event["payload"].items()
        ]

    async def wait_for(self, count: int, *, timeout_seconds: float = 10.0) -> list[Received]:
        """Everything received, once there are `count` requests.

        Raises:
            TimeoutError: There are fewer after `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds), self._news:
            await self._news.wait_for(lambda: len(self.received) >= count)
        return self.received

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(min(int(headers.get("content-length", 0)), MAX_BODY_BYTES))
            status = self.statuses.pop(0) if self.statuses else 200
            more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            writer.write(
                f"HTTP/1.1 {status} Status\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n".encode("latin-1")
            )
            await writer.drain()
            async with self._news:
                self.received.append(Received(headers, body))
                self._news.notify_all()
        finally:
            writer.close()
