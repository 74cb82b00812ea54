"""The edge: everything that every request passes, in one layer.

Five layers would cost more than the five things that they do; their order here, outermost first, is that of
`EdgeMiddleware._answer`: whose app and which request this is, the time and the count of it, the answer to whatever
escapes, and the limit of the body.
"""

from __future__ import annotations

import os
import sys
from time import perf_counter

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.config import Environment
from svc_infra.errors import PayloadTooLargeError, SvcInfraError
from svc_infra.middleware._scope import ANSWER_HEADERS, EDGE, log_answered, read_headers, route_template
from svc_infra.middleware._websocket import Handshake
from svc_infra.middleware.problem import as_problem, respond
from svc_infra.obs.context import Context, enter, leave
from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import logger
from svc_infra.wiring import Wiring

CLIENT_CLOSED_STATUS = 499
"""Logged and counted where the client went away before an answer began; nobody receives it."""


class EdgeMiddleware:
    """Runs each request as its app's own: identified, measured, bounded, and answered whatever happens.

    Args:
        app: The rest of the stack.
        wiring: The app's wiring; the edge measures requests when it has `HttpMetrics`.
    """

    def __init__(self, app: ASGIApp, *, wiring: Wiring) -> None:
        self.app = app
        self._wiring = wiring
        self._metrics = wiring.get(HttpMetrics) if wiring.has(HttpMetrics) else None
        self._max_body_bytes = wiring.settings.app.max_body_bytes
        self._expose = wiring.settings.environment is not Environment.PROD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the app's lifespan."""
        with self._wiring.active():
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
                return
            self._wiring.request_started()
            try:
                if EDGE in scope:  # mounted in another app, whose edge has done the rest
                    await self.app(scope, receive, send)
                elif scope["type"] == "http":
                    await self._answer(scope, receive, send)
                else:
                    await self._converse(scope, receive, send)
            finally:
                self._wiring.request_finished()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = read_headers(scope["headers"])
        context = _context(sent.request_id, sent.trace.trace_id if sent.trace else "")
        token = enter(context)
        scope[EDGE] = True
        exchange = Exchange(scope, receive, send, context.request_id, self._max_body_bytes, self._expose)
        root_path = scope.get("root_path", "")
        route_class = "" if self._metrics is None else self._metrics.started(scope["path"])
        started = perf_counter()
        try:
            try:
                if sent.body_bytes > self._max_body_bytes:
                    raise PayloadTooLargeError
                await self.app(scope, exchange.receive, exchange.send)
                await exchange.finish()
            except Exception as error:
                if not await exchange.fail(error):
                    raise
        finally:
            seconds = perf_counter() - started
            status = exchange.status or CLIENT_CLOSED_STATUS
            route = route_template(scope, root_path)
            if self._metrics is not None:
                self._metrics.finished(scope["method"], route, status, seconds, route_class, exchange.error)
            log_answered(scope, route=route, status=status, sent_bytes=exchange.sent_bytes, seconds=seconds)
            leave(token)

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = read_headers(scope["headers"])
        context = _context(sent.request_id, sent.trace.trace_id if sent.trace else "")
        token = enter(context)
        scope[EDGE] = True
        handshake = Handshake(scope, send, context.request_id, self._expose)
        root_path, started = scope.get("root_path", ""), perf_counter()
        try:
            await self.app(scope, receive, handshake.send)
        except Exception as error:  # noqa: BLE001 - the server would only close; this logs, tells the client and closes
            await handshake.fail(error)
        finally:
            log_answered(
                scope,
                route=route_template(scope, root_path),
                status=handshake.status,
                sent_bytes=handshake.sent_bytes,
                seconds=perf_counter() - started,
            )
            leave(token)


class Exchange:
    """One request and the answer to it: how far it is, and what may still be sent."""

    __slots__ = (
        "_expose",
        "_is_head",
        "_left_bytes",
        "_receive",
        "_request_id",
        "_scope",
        "_send",
        "complete",
        "disconnected",
        "error",
        "sent_bytes",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, max_body_bytes: int, expose: bool
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = (b"x-request-id", request_id.encode())
        self._left_bytes = max_body_bytes
        self._expose = expose
        self._is_head = scope["method"] == "HEAD"
        self.status = 0
        self.sent_bytes = 0
        self.complete = False
        self.disconnected = False
        self.error: BaseException | None = None

    async def receive(self) -> Message:
        """Pass on what the client sends, up to the limit."""
        if self._left_bytes < 0:
            raise _too_large()
        message = await self._receive()
        if message["type"] == "http.request":
            self._left_bytes -= len(message.get("body", b""))
            if self._left_bytes < 0:
                raise _too_large()
        else:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app answers, unless it answers to a body of which it only got a part."""
        if self._left_bytes >= 0:
            await self._forward(message)
        elif not self.status:
            await self._respond(PayloadTooLargeError())

    async def finish(self) -> None:
        """Give an answer where the app has returned without one."""
        if not self.status and not self.disconnected:
            raise PayloadTooLargeError if self._left_bytes < 0 else SvcInfraError("The app returned without an answer.")

    async def fail(self, error: Exception) -> bool:
        """Answer an error that escaped from the app.

        Returns:
            False when the answer had begun and cannot be completed: the server must close the connection.
        """
        if self.status:
            if isinstance(error, ClientDisconnect):
                return True
            self._report(error)
            return self.complete
        if as_problem(error).status >= 500:
            self._report(error)
        await self._respond(error)
        return True

    async def _respond(self, error: Exception) -> None:
        headers = self._scope.get(ANSWER_HEADERS, ())
        await respond(self._scope, self._forward, error, expose=self._expose, headers=headers)

    async def _forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 500 and self.error is None and (cause := sys.exc_info()[1]) is not None:
                self._report(cause)  # an exception handler inside the app is answering this one
            headers = [header for header in message.get("headers", ()) if header[0] != b"x-request-id"]
            headers.append(self._request_id)
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if self._is_head and message.get("body"):
                message = {**message, "body": b""}
            self.sent_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        elif message["type"] == "http.response.pathsend":
            self.complete = True
        await self._send(message)

    def _report(self, error: BaseException) -> None:
        self.error = error
        logger.error("request.failed", exc_info=error, method=self._scope["method"], path=self._scope["path"])


def _context(request_id: str, trace_id: str) -> Context:
    fresh = os.urandom(40).hex()
    return Context(request_id or fresh[:32], trace_id or fresh[32:64], fresh[64:])


def _too_large() -> HTTPException:
    """Starlette's own class, which frameworks let pass where they take any other error for an unreadable body."""
    return HTTPException(413, PayloadTooLargeError.__doc__)
