"""The edge's part in a websocket: its handshake, and the end of it when the app fails."""

from __future__ import annotations

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import Message, Scope, Send
from starlette.websockets import WebSocketDisconnect

from svc_infra.middleware._websocket import refuse
from svc_infra.middleware.problem import Headers, as_problem
from svc_infra.obs.logging import logger

SWITCHING_STATUS = 101
REFUSED_STATUS = 403


class Handshake:
    """One websocket: whether it is open, and what may still be sent."""

    __slots__ = (
        "_closed",
        "_expose",
        "_request_id",
        "_scope",
        "_send",
        "answer_headers",
        "error",
        "root_path",
        "sent_bytes",
        "status",
    )

    def __init__(self, scope: Scope, send: Send, request_id: str, expose: bool) -> None:
        self._scope = scope
        self._send = send
        self._request_id = (b"x-request-id", request_id.encode())
        self._expose = expose
        self._closed = False
        self.root_path: str = scope.get("root_path", "")
        self.answer_headers: list[Callable[[], Headers]] = []
        self.error: Exception | None = None
        self.status = REFUSED_STATUS
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        """Pass on what the app sends."""
        kind = message["type"]
        if kind == "websocket.close" and self._can_be_answered:
            await self._refuse(HTTPException(*self._refusal(message)))
            return
        if kind == "websocket.send":
            self.sent_bytes += len(message.get("bytes") or message.get("text") or "")
        elif kind in ("websocket.accept", "websocket.http.response.start"):
            self.status = message.get("status", SWITCHING_STATUS)
            more = [header for headers in self.answer_headers for header in headers()]
            message = {**message, "headers": [*message.get("headers", ()), *more, self._request_id]}
        if kind in ("websocket.close", "websocket.http.response.start"):
            self._closed = True
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Log an error that escaped from the app, and tell the client as far as that is still possible."""
        if isinstance(error, WebSocketDisconnect):  # the client has left; there is nobody to tell
            self._closed = True
            return
        problem = as_problem(error)
        if problem.status >= 500:
            self.error = error
            logger.error("websocket.failed", exc_info=error, path=self._scope["path"])
        if not self._closed:
            await self._refuse(error)

    @property
    def _can_be_answered(self) -> bool:
        """Whether nothing has been sent, and the server can send an answer to the handshake."""
        is_new = not self._closed and self.status == REFUSED_STATUS
        return is_new and "websocket.http.response" in self._scope.get("extensions", {})

    def _refusal(self, closed: Message) -> tuple[int, str | None]:
        """What an app says that closes a websocket before it is open, as Starlette does where there is no route."""
        if "endpoint" not in self._scope:
            return 404, None
        return REFUSED_STATUS, closed.get("reason") or None

    async def _refuse(self, error: Exception) -> None:
        await refuse(self._scope, self.send, error, expose=self._expose, is_open=self.status == SWITCHING_STATUS)
