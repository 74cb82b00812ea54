"""A client that calls an app in this process, message by message, and hides nothing of what it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Never

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from svc_infra.config import AppSettings, Settings
from svc_infra.edge.edge import EdgeMiddleware
from svc_infra.wiring import wiring_of

Headers = Iterable[tuple[str, str]]


@dataclass
class Answer:
    """What an app sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        (start,) = [message for message in self.messages if message["type"].endswith("response.start")]
        return int(start["status"])

    @property
    def headers(self) -> list[tuple[str, str]]:
        (start,) = [message for message in self.messages if message["type"].endswith("response.start")]
        return [(name.decode(), value.decode("latin-1")) for name, value in start["headers"]]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        """The one header of this name."""
        (value,) = [value for key, value in self.headers if key == name]
        return value

    def is_problem(self, status: int, code: str) -> bool:
        """Whether this is this problem, well formed; when not, the assertion says what is wrong."""
        assert self.status == status, self.body
        assert self.header("content-type") == "application/problem+json"
        assert int(self.header("content-length")) == len(self.body)
        problem = self.json
        assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"/problems/{code}")
        assert problem["title"]
        assert problem["detail"]
        return True


def scope_of(
    method: str = "GET",
    path: str = "/",
    *,
    headers: Headers = (),
    client: tuple[str, int] | None = ("192.0.2.1", 50000),
    scheme: str = "http",
    root_path: str = "",
    query: bytes = b"",
) -> dict[str, Any]:
    """The scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query,
        "root_path": root_path,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": ("testserver", 80),
        "state": {},
    }


async def call(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    *,
    body: bytes | Iterable[bytes] = b"",
    headers: Headers = (),
    **scope: Any,
) -> Answer:
    """Call an app once.

    Args:
        body: Sent in one message, or in one for each part.
    """
    answer = Answer()
    parts = [body] if isinstance(body, bytes) else list(body)

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await app(scope_of(method, path, headers=headers, **scope), receive, send)
    return answer


def settings_of(given: dict[str, Any]) -> Settings:
    """Settings of the app (`env="prod"`) and of the edge's sections (`edge={"max_headers": 5}`)."""
    sections = {name: given.pop(name) for name in ("edge", "cors", "headers") if name in given}
    return Settings(app=AppSettings(**given), **sections)


def edged(app: Starlette, **settings: Any) -> Starlette:
    """Put an app inside of the edge, as `create_app` does; its settings are those of `settings_of`."""
    wiring = wiring_of(app, settings=settings_of(settings))
    build = app.build_middleware_stack

    def build_inside_of_the_edge() -> ASGIApp:
        return EdgeMiddleware(build(), wiring=wiring)

    def leave_to_the_edge(_: Request, error: Exception) -> Never:
        raise error

    app.add_exception_handler(Exception, leave_to_the_edge)
    app.build_middleware_stack = build_inside_of_the_edge  # type: ignore[method-assign]
    return app


def only(endpoint: Any, *, methods: tuple[str, ...] = ("GET", "POST"), **settings: Any) -> Starlette:
    """An app of one route."""
    return edged(Starlette(routes=[Route("/{path:path}", endpoint, methods=list(methods))]), **settings)


def around(app: ASGIApp, **settings: Any) -> EdgeMiddleware:
    """The edge around a bare ASGI app."""
    return EdgeMiddleware(app, wiring=wiring_of(Starlette(), settings=settings_of(settings)))


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Run an app's lifespan through the whole stack, as a server does."""
    received: asyncio.Queue[Message] = asyncio.Queue()
    sent: asyncio.Queue[Message] = asyncio.Queue()

    async def run() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, received.get, sent.put)

    running = asyncio.create_task(run())
    await received.put({"type": "lifespan.startup"})
    if (await sent.get())["type"] != "lifespan.startup.complete":
        await running
    try:
        yield
    finally:
        await received.put({"type": "lifespan.shutdown"})
        await running
