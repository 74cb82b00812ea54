"""Access log, as a middleware of its own."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.middleware._scope import EDGE, log_answered, route_template


class LoggingMiddleware:
    """Writes one line for each request once it is answered: method, route, path, status, bytes, duration, client.

    Does nothing in an app of `create_app`, whose edge has done it.

    Args:
        app: The rest of the stack.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or EDGE in scope:
            await self.app(scope, receive, send)
            return
        status, sent_bytes = 500, 0

        async def send_counted(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        root_path, started = scope.get("root_path", ""), perf_counter()
        try:
            await self.app(scope, receive, send_counted)
        finally:
            route, seconds = route_template(scope, root_path), perf_counter() - started
            log_answered(scope, route, status, sent_bytes, seconds)
