"""uvicorn's HTTP/1.1, with bounds on what comes before a request is complete enough for an app to see it.

uvicorn with httptools keeps the headers of a request in memory for as long as they come: 100 MB of them are 110 MB of
memory, by one connection, of which no app ever hears. And it waits for ever for a request's end, and for its beginning
on a connection that has not had one. `EDGE_MAX_URL_BYTES` and `EDGE_MAX_HEADER_BYTES`, which the edge holds complete
requests to, bound the incomplete ones here, and what stands between and behind the chunks of a body;
`EDGE_HEADER_TIMEOUT_SECONDS` bounds the wait, and `EDGE_SEND_TIMEOUT_SECONDS` that for a client which does not read.

Two things it does otherwise than HTTP wants: trailer fields, which follow a body, become headers of the request, so
that a client can slip in what a proxy takes off (RFC 9110, section 6.5.1); and of a request that offers to change to
another protocol, as Java's clients offer HTTP/2, the body is lost. Here the first are dropped and the second is read.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from secrets import token_hex
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from svc_infra.config.serving import EdgeSettings
from svc_infra.errors import (
    BadRequestError,
    HeadersTooLargeError,
    RequestTimeoutError,
    SvcInfraError,
    UriTooLongError,
)
from svc_infra.middleware.problem import encoded, render
from svc_infra.obs.context import Context, enter, leave

LINGER_SECONDS = 1.0
"""How long a client that goes on sending may take to read why it is refused; a reset would take that from it."""

_FRAMING = frozenset([b"content-length", b"transfer-encoding"])
_CALLBACKS = ("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete")


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
        self._limits = limits
        self._max_bytes = limits.max_url_bytes + limits.max_header_bytes
        self._seconds = limits.header_timeout_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._is_over = False
        self._bytes = 0
        """Of headers that are not complete, or since the last part of a body that is not."""
        self._data = b""
        """What is being read."""
        self._unread = b""
        """The rest of it, where the parser could not go on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self._seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waiting."""
        self._wait_no_longer()
        self._look_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, as long as the headers of the next request, and what is no body behind them, are not too large."""
        if self._is_over:
            return
        part = self._incomplete
        self._bytes += len(data)
        while data and not self._is_over:
            self._data, self._unread = data, b""
            super().data_received(data)
            data = self._unread
        self._data = b""
        if self._is_over or self.transport.is_closing():
            return
        if part is None or self._incomplete is not part:  # what has come belongs to several, and is no more than a read
            self._bytes = 0
        elif self._bytes > self._max_bytes:
            self._refuse(HeadersTooLargeError())
            return
        if self._is_answering:
            self._wait_no_longer()
        elif self._deadline is None:  # from its first byte on; more of them bring no more time
            self._deadline = self.loop.call_later(self._seconds, self._give_up)

    def on_headers_complete(self) -> None:
        """Begin the request; what uvicorn would add to its headers from now on are trailer fields."""
        super().on_headers_complete()
        if not self._in_headers:  # else it becomes a websocket, whose protocol reads the headers
            self.headers = _NO_TRAILERS

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, which has a limit of its own."""
        self._bytes = 0
        super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Go on in HTTP/1.1, as a server may (RFC 9110, section 7.8); the parser has taken the body for something else.

        uvicorn calls this where it would only warn.
        """
        upgrade, headers = sys.exc_info()[1], self.scope["headers"]
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers):
            super()._unsupported_upgrade_warning()
        if isinstance(upgrade, httptools.HttpParserUpgrade) and not self._in_headers:
            framing = [(name, value) for name, value in headers if name in _FRAMING]
            if any(name == b"transfer-encoding" or value.strip(b"0 ") for name, value in framing):
                self.cycle.more_body = True
                self.cycle.message_event.clear()
            self.parser = _Continuation(self, framing).parser
            self._unread = self._data[upgrade.args[0] :]

    def pause_writing(self) -> None:
        """Have the app wait until the client has taken some of its answer, and look whether it does."""
        super().pause_writing()
        self._look_no_longer()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Let the app go on."""
        self._look_no_longer()
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the protocol of websockets; what that cannot read is refused, not waited for."""
        self._wait_no_longer()
        if error := self._too_large():
            self._refuse(error)
            return
        super().handle_websocket_upgrade()
        conn = getattr(self.transport.get_protocol(), "conn", None)
        if getattr(conn, "handshake_exc", None) is None:
            self._is_over = True
        else:  # `websockets` has stopped reading, and uvicorn neither answers nor closes
            self._refuse(BadRequestError("That is no handshake of a websocket."))

    def _too_large(self) -> SvcInfraError | None:
        limits, headers = self._limits, self.headers
        if len(self.url) > limits.max_url_bytes:
            return UriTooLongError()
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > limits.max_headers or size > limits.max_header_bytes:
            return HeadersTooLargeError()
        return None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as a problem like every other."""
        self._refuse(BadRequestError(msg))

    @property
    def _in_headers(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    @property
    def _incomplete(self) -> object | None:
        """What has begun and is not complete: headers, or else a body; None where neither is."""
        if self._in_headers:
            return self.scope
        return self.cycle if self.cycle is not None and self.cycle.more_body else None

    @property
    def _is_answering(self) -> bool:
        """Whether the app has a request; its body and its answer have limits of their own."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_no_longer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _look_again(self, waiting_bytes: int) -> None:
        self._look = self.loop.call_later(self._limits.send_timeout_seconds, self._look_after, waiting_bytes)

    def _look_after(self, waiting_bytes: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < waiting_bytes:
            self._look_again(left)
        else:  # nothing was taken: a close would wait for ever, too
            self.transport.abort()

    def _look_no_longer(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

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
        is_body = self.cycle is not None and self._incomplete is self.cycle
        if is_body or self._is_answering or self.transport.is_closing():  # it would stand in another answer, or for one
            self.transport.close()
            return
        self.transport.write(_answer(error, self.server_state.default_headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


class _Continuation:
    """Makes a parser of what follows the headers of a request, where another one has read those and stopped.

    Args:
        protocol: Whose callbacks are called.
        framing: Of the headers those that say how long the body is; the parser is told them in a request of our own.
    """

    def __init__(self, protocol: HttpToolsProtocol, framing: Iterable[tuple[bytes, bytes]]) -> None:
        self._is_ours = True
        for name in _CALLBACKS:
            setattr(self, name, partial(self._pass_on, getattr(protocol, name)))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *(b"%b: %b\r\n" % one for one in framing), b"\r\n"]))
        self._is_ours = False

    def _pass_on(self, callback: Callable[..., None], *arguments: bytes) -> None:
        if not self._is_ours:
            callback(*arguments)


class _Dropped(list[tuple[bytes, bytes]]):
    """Stays empty."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Do nothing."""


_NO_TRAILERS = _Dropped()


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
