"""Starlette's refusals of a range, which are text, as problems.

`FileResponse` and `StaticFiles` find out that they cannot give a range while they answer, where no exception handler is
asked any more. So their answer is held back until its text is known, and another one is sent in its place.

A range in a unit that nobody knows is none (RFC 9110, section 14.2), where Starlette answers 400. It stays in the
request, because a handler may know its unit; a condition that no file fulfils makes Starlette give the whole.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.middleware.problem import as_problem, render

NO_SUCH_PART = "What was asked for has no such part: Content-Range says how long it is."

_REFUSALS = (400, 416)
_UNIT = re.compile(rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=")
_WHOLE = (b"if-range", b'"in a unit of files"')


class Ranges:
    """Answers a request for a range that cannot be given with a problem.

    Only a short text in answer to a request with `Range` is replaced; its headers, such as `Content-Range`, are kept.

    Args:
        app: What may answer it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let the app answer a request for a range."""
        if _is_in_another_unit(scope["headers"]):
            scope["headers"] = [_WHOLE, *scope["headers"]]
        return self._app(scope, receive, _Answer(scope, send).send)


class _Answer:
    """The answer to one request for a range."""

    __slots__ = ("_held", "_scope", "_send")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._held: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in _REFUSALS and _is_text(message):
            self._held = message
            return
        held, self._held = self._held, None
        if held is not None:
            if not message.get("more_body", False):
                held, message = self._problem(held, message.get("body", b""))
            await self._send(held)
        await self._send(message)

    def _problem(self, start: Message, text: bytes) -> tuple[Message, Message]:
        kept = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        for of_the_text in ("content-type", "content-length"):
            kept.pop(of_the_text, None)
        detail = text.decode(errors="replace") or NO_SUCH_PART
        problem = as_problem(HTTPException(start["status"], detail, headers=kept))
        status, headers, body = render(problem, scope=self._scope, expose=False, cause=None)
        headers.append((b"content-length", str(len(body)).encode()))
        return {**start, "status": status, "headers": headers}, {"type": "http.response.body", "body": body}


def _is_in_another_unit(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    unit = _UNIT.match(next(value for name, value in headers if name == b"range"))
    return unit is not None and unit[1].lower() != b"bytes"


def _is_text(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/plain") for name, value in start["headers"])
