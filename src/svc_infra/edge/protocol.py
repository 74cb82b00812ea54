"""uvicorn's HTTP/1.1, with bounds on what comes before a request is complete enough for an app to see it.

uvicorn with httptools keeps the headers of a request in memory for as long as they come: 100 MB of them are 110 MB of
memory, by one connection, of which no app ever hears. And it waits for ever for a request's end, and for its beginning
on a connection that has not had one. `EDGE_MAX_URL_BYTES` and `EDGE_MAX_HEADER_BYTES`, which the edge holds complete
requests to, bound the incomplete ones here; `EDGE_HEADER_TIMEOUT_SECONDS` bounds the wait.
"""

from __future__ import annotations

import asyncio
from functools import cache, partial
from secrets import token_hex
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from svc_infra.config.serving import EdgeSettings
from svc_infra.errors import BadRequestError, HeadersTooLargeError, RequestTimeoutError, SvcInfraError
from svc_infra.middleware.problem import encoded, render
from svc_infra.obs.context import Context, enter, leave

LINGER_SECONDS = 1.0
"""How long a client that goes on sending may take to read why it is refused; a reset would take that from it."""


def bound(config: uvicorn.Config, limits: EdgeSettings) -> None:
    """Put the bounds around a server that uses uvicorn's own protocol with httptools; any other is somebody's choice.

    Args:
        config: The server's; what it accepts from now on is bounded.
        limits: Those of `EDGE_*`.
    """
    if config.http_protocol_class is HttpToolsProtocol:
        config.http_protocol_class = partial(BoundedProtocol, limits=limits)  # type: ignore[assignment]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Apps of `create_app` put it in the place of uvicorn's own where they find that.

    Elsewhere, as where a server runs in another thread than the main one: `uvicorn.Config(app, http=BoundedProtocol)`.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: uvicorn's.
        limits: Those of `EDGE_*`, as the environment says when left out.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: EdgeSettings | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        limits = _from_environment() if limits is None else limits
        self._max_bytes = limits.max_url_bytes + limits.max_header_bytes
        self._seconds = limits.header_timeout_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._is_over = False
        self._bytes = 0
        """Of the request whose headers are not complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self._seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, as long as the headers of the next request are not too large."""
        if self._is_over:
            return
        in_headers = self._in_headers
        super().data_received(data)
        if self._is_over or self.transport.is_closing():
            return
        if not self._in_headers:
            self._bytes = 0
        elif in_headers:  # before, it was a part of another request, and no larger than one read
            self._bytes += len(data)
            if self._bytes > self._max_bytes:
                self._refuse(HeadersTooLargeError())
                return
        if self._is_answering:
            self._wait_no_longer()
        elif self._deadline is None:  # from its first byte on; more of them bring no more time
            self._deadline = self.loop.call_later(self._seconds, self._give_up)

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the protocol of websockets."""
        self._is_over = True
        self._wait_no_longer()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as a problem like every other."""
        self._refuse(BadRequestError(msg))

    @property
    def _in_headers(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    @property
    def _is_answering(self) -> bool:
        """Whether the app has a request; its body and its answer have limits of their own."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_no_longer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._in_headers:
            self._refuse(RequestTimeoutError())
        else:  # nothing was asked
            self.transport.close()

    def _refuse(self, error: SvcInfraError) -> None:
        """Say why, and close when the client has had the time to read it (RFC 9112, section 9.6)."""
        self._wait_no_longer()
        self._is_over = True
        if self._is_answering or self.transport.is_closing():  # it would stand within another answer
            self.transport.close()
            return
        self.transport.write(_answer(error, self.server_state.default_headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


def _answer(error: SvcInfraError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """An answer to a request that is not known, not even by its path."""
    context = Context(token_hex(16), token_hex(16), token_hex(8))
    token = enter(context)
    try:
        status, headers, body = render(error, scope={"type": "http", "path": ""}, expose=False, cause=None)
    finally:
        leave(token)
    headers += encoded(
        [("X-Request-Id", context.request_id), ("Content-Length", str(len(body))), ("Connection", "close")]
    )
    lines = [name + b": " + value for name, value in [*default_headers, *headers]]
    return STATUS_LINE[status] + b"\r\n".join([*lines, b"", body])


@cache
def _from_environment() -> EdgeSettings:
    return EdgeSettings()
