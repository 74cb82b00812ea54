"""Request ids, as a middleware of its own."""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.middleware._scope import EDGE, client_ip, read_headers
from svc_infra.obs.context import Context, enter, leave


class RequestIdMiddleware:
    """Gives each request an id, found in every log line, and sends it back in `X-Request-Id`.

    A client's own id is kept when it consists of 1 to 128 letters, digits, dots, underscores and dashes. Does nothing
    in an app of `create_app`, whose edge has done it.

    Args:
        app: The rest of the stack.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or EDGE in scope:
            await self.app(scope, receive, send)
            return
        sent = read_headers(scope["headers"])
        request_id = sent.request_id or os.urandom(16).hex()
        header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        trace_id = sent.trace.trace_id if sent.trace else ""
        token = enter(Context(request_id, trace_id, client_ip=client_ip(scope)))
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            leave(token)
