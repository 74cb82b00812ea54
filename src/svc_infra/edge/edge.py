"""The edge: everything that every request passes, in one layer; a layer for each would cost more than they do."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from random import getrandbits
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.config import Environment
from svc_infra.edge.admission import Admission
from svc_infra.edge.cors import answer_preflight, cors, is_preflight
from svc_infra.edge.exchange import Exchange, Rules
from svc_infra.edge.handshake import Handshake
from svc_infra.edge.hosts import TrustedHosts
from svc_infra.errors import HeadersTooLargeError, PayloadTooLargeError, SvcInfraError, UriTooLongError
from svc_infra.middleware._scope import EDGE, Sent, log_answered, path_in_app, read_headers, route_template
from svc_infra.middleware.proxies import TrustedProxies
from svc_infra.middleware.security_headers import SecurityHeaders
from svc_infra.obs.context import Context, enter, leave
from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import Answered, log_request
from svc_infra.obs.tracing import Tracing
from svc_infra.wiring import Wiring, activate, deactivate

CLIENT_CLOSED_STATUS = 499
"""Logged and counted where the client went away before an answer began; nobody receives it."""
OPS = "/_ops/"
"""Below this path lie the probes: asked by address instead of by name, also when the service has too much to do."""


class EdgeMiddleware:
    """Runs each request as its app's own: identified, measured, bounded, and answered whatever happens.

    Args:
        app: The rest of the stack.
        wiring: The app's wiring; the edge measures requests when it has `HttpMetrics`.

    Raises:
        ConfigurationError: `CORS_*` would let every page send credentials.
    """

    def __init__(self, app: ASGIApp, *, wiring: Wiring) -> None:
        settings = wiring.settings
        self.app = app
        self._wiring = wiring
        self._metrics = wiring.get(HttpMetrics) if wiring.has(HttpMetrics) else None
        self._metrics_page = None if self._metrics is None else self._metrics.page
        self._tracing = wiring.get(Tracing) if wiring.has(Tracing) else None
        self._limits = edge = settings.edge
        proxies, header = edge.trusted_proxies, edge.forwarded_header
        self._proxies = TrustedProxies(proxies, header=header, forwarded_host=edge.forwarded_host) or None
        self._hosts = TrustedHosts(edge.trusted_hosts) or None
        self._cors = cors(app, settings.cors)
        self._rules = Rules(
            wiring=wiring,
            admission=Admission(edge),
            security=SecurityHeaders(settings.headers),
            expose=settings.environment is not Environment.PROD,
            max_body_bytes=settings.app.max_body_bytes,
            body_timeout_seconds=edge.body_timeout_seconds,
            min_body_bytes_per_second=edge.min_body_bytes_per_second,
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, or run the app's lifespan."""
        if EDGE in scope or scope["type"] == "lifespan":
            return self._pass_on(scope, receive, send)
        return (self._answer if scope["type"] == "http" else self._converse)(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan, or the app as one that is mounted in another, whose edge has done the rest."""
        with self._wiring.active():
            if scope["type"] == "lifespan":
                await self.app(scope, receive, _plainly(send))
                return
            self._wiring.request_started()
            try:
                await self.app(scope, receive, send)
            finally:
                self._wiring.request_finished()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The outer part of the stack, outermost first; `_let_in` is the inner one.

        1. Trusted proxies: all that follows believes the scope's client, scheme and host.
        2. Request id and trace: on every line and every answer, also on those that refuse.
        3. Time, count and access line: of every answer, also of those that refuse.
        4. The answer to whatever escapes from further in, with the headers that every answer has.
        """
        wiring, metrics = self._wiring, self._metrics
        if self._proxies is not None:
            self._proxies.apply(scope)
        sent = read_headers(scope["headers"])
        context = _context(sent, scope)
        exchange = scope[EDGE] = Exchange(self._rules, scope, receive, send, context)
        active, token = activate(wiring), enter(context)
        wiring.request_started()
        path = path_in_app(scope) if exchange.root_path else scope["path"]
        route_class = "" if metrics is None else metrics.started(path)
        started = monotonic()
        span = None
        try:
            try:
                if self._tracing is not None:
                    span = self._tracing.server(scope, context, sent.trace)
                await self._let_in(scope, path, sent, exchange, started)
                if not exchange.status:
                    exchange.finish()
            except BaseException as raised:
                error = exchange.after_cancelling(raised) if exchange.expired else raised
                if not isinstance(error, Exception) or not await exchange.fail(error):
                    raise
        finally:
            if not exchange.status or exchange.expired:
                exchange.leave()
            seconds = monotonic() - started
            method, sent_bytes = scope["method"], exchange.sent_bytes
            status = exchange.status or CLIENT_CLOSED_STATUS
            route = route_template(scope, exchange.root_path)
            if metrics is not None:
                metrics.finished(method, route, status, seconds, sent_bytes, route_class, exchange.error)
            first_byte_seconds = exchange.began - started if exchange.began else None
            answered = method, scope["path"], route, status, sent_bytes, seconds, first_byte_seconds, context.client_ip
            log_request(Answered(*answered))
            if span is not None:
                span.end(scope, route, status, exchange.error)
            del scope[EDGE]  # which would keep both alive until the garbage collector finds them
            leave(token)
            wiring.request_finished()
            deactivate(active)

    def _let_in(self, scope: Scope, path: str, sent: Sent, exchange: Exchange, now: float) -> Awaitable[None]:
        """The inner part of the stack, outermost first: what is cheaper to refuse is refused earlier.

        1. Trusted hosts: another host's request is nobody's business here. Probes come by address.
        2. CORS: a preflight is answered before any limit, which a page could not tell from a refusal, and every answer
           from here on can be read by the pages that may.
        3. The address and the headers, the declared size of the body.
        4. A place among the handlers that run, and a deadline. Probes are never refused.
        5. The app. What it reads of the body is counted and timed in `Exchange.receive`.
        """
        is_ops = path.startswith(OPS) or path == self._metrics_page
        if self._hosts is not None and not is_ops:
            self._hosts.check(scope["headers"])
        if self._cors is not None:
            exchange.varies = b"origin" not in dict(scope["headers"])
            if not exchange.varies:
                headers = Headers(scope=scope)
                if is_preflight(scope, headers):
                    return answer_preflight(self._cors, headers, scope, exchange.receive, exchange.send)
                exchange.share(self._cors, headers)
        self._measure(scope, sent)
        if sent.body_bytes > self._rules.max_body_bytes:
            raise PayloadTooLargeError
        if self._rules.admission.enter(exchange, now, is_ops):
            return self.app(scope, exchange.receive, exchange.send)
        return self._queue(scope, exchange)

    def _measure(self, scope: Scope, sent: Sent) -> None:
        limits = self._limits
        if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > limits.max_url_bytes:
            raise UriTooLongError
        if sent.headers > limits.max_headers or sent.header_bytes > limits.max_header_bytes:
            raise HeadersTooLargeError

    async def _queue(self, scope: Scope, exchange: Exchange) -> None:
        await self._rules.admission.wait(exchange)
        await self.app(scope, exchange.receive, exchange.send)

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same stack for a websocket, which has no body and takes as long as it likes."""
        if self._proxies is not None:
            self._proxies.apply(scope)
        sent = read_headers(scope["headers"])
        context = _context(sent, scope)
        handshake = scope[EDGE] = Handshake(scope, send, context.request_id, self._rules.expose)
        active, token = activate(self._wiring), enter(context)
        self._wiring.request_started()
        started = monotonic()
        span = None
        try:
            if self._tracing is not None:
                span = self._tracing.server(scope, context, sent.trace)
            if self._hosts is not None:
                self._hosts.check(scope["headers"])
            self._measure(scope, sent)
            await self.app(scope, receive, handshake.send)
        except Exception as error:  # noqa: BLE001 - the server would only close; this logs, tells the client and closes
            await handshake.fail(error)
        finally:
            route, seconds = route_template(scope, handshake.root_path), monotonic() - started
            log_answered(scope, route, handshake.status, handshake.sent_bytes, seconds)
            if span is not None:
                span.end(scope, route, handshake.status, handshake.error)
            del scope[EDGE]
            leave(token)
            self._wiring.request_finished()
            deactivate(active)


def _context(sent: Sent, scope: Scope) -> Context:
    fresh, trace, client = getrandbits(320).to_bytes(40).hex(), sent.trace, scope.get("client")
    ip = str(client[0]) if client else ""
    request_id = sent.request_id or fresh[:32]
    if trace is None:
        return Context(request_id, fresh[32:64], fresh[64:], client_ip=ip)
    return Context(request_id, trace.trace_id, fresh[64:], client_ip=ip, sampled=trace.sampled)


def _plainly(send: Send) -> Send:
    """A start that fails for a reason that the library knows is one sentence in the server's log."""

    async def tell(message: Message) -> None:
        error = sys.exc_info()[1]  # Starlette tells of a failure while it handles it, with a traceback for a message
        if message["type"] == "lifespan.startup.failed" and isinstance(error, SvcInfraError):
            message = {**message, "message": error.detail}
        await send(message)

    return tell
