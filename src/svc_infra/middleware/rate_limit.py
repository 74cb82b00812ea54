"""Rate limits, as a middleware of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.config import Settings
from svc_infra.errors import SvcInfraError
from svc_infra.middleware._limiter import (
    LIMITED,
    MAX_KNOWN_CHARGES,
    Charge,
    Limited,
    Limiter,
    OnOutage,
    charge,
    network,
)
from svc_infra.middleware._scope import EDGE, client_ip, path_in_app
from svc_infra.middleware._websocket import refuse
from svc_infra.middleware.gcra import Rate
from svc_infra.middleware.problem import respond
from svc_infra.middleware.rate_limit_store import RateLimitStore, store_of
from svc_infra.obs.context import current, enter, leave
from svc_infra.obs.http_metrics import metrics_page
from svc_infra.wiring import current_wiring

_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class RateLimitMiddleware:
    """Answers 429 to a client that sends more than the rate allows; every answer says how much is left.

    A client is the peer's address, or its /64 network under IPv6. It is counted where `RATE_LIMIT_DRIVER` says: by
    default in Redis or Valkey when `REDIS_URL` is set, else in this process. Preflight requests are not counted.

    Routes inside of it may have limits of their own: see `svc_infra.middleware.http.rate_limit`.

    Args:
        app: The rest of the stack.
        rate: How many requests in which time, such as `100/minute`; as many may come at once. Several, such as
            `("10/second", "1000/hour")`, are all kept. None at all, `()`, leaves the limits to the routes.
        exempt_prefixes: Paths that are never limited.
        store: Instead of the one that the settings ask for; whoever made it closes it.
        on_outage: `allow` or `deny` (503) requests while the store is down; `RATE_LIMIT_ON_OUTAGE` when left out.

    Raises:
        ConfigurationError: A rate cannot be understood. At start-up: a setting is wrong.
    """

    def __init__(
        self,
        app: ASGIApp,
        rate: str | Iterable[str] = "100/minute",
        *,
        exempt_prefixes: tuple[str, ...] = ("/_ops/",),
        store: RateLimitStore | None = None,
        on_outage: OnOutage | None = None,
    ) -> None:
        self.app = app
        self._rates = [Rate.parse(one) for one in ([rate] if isinstance(rate, str) else rate)]
        self._exempt_prefixes = exempt_prefixes
        self._store = store
        self._on_outage = on_outage
        self._limiter: Limiter | None = None
        self._metrics_page: str | None = None
        self._charges = lru_cache(maxsize=MAX_KNOWN_CHARGES)(self._charges_of)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request; no coroutine of its own where nothing has to be waited for."""
        if scope["type"] == "lifespan":
            return self._live(scope, receive, send)
        limiter = self._limiter or self._started()
        path = path_in_app(scope) if scope.get("root_path") else scope["path"]
        if path.startswith(self._exempt_prefixes) or path == self._metrics_page or _is_preflight(scope):
            scope.setdefault(LIMITED, None)
            return self.app(scope, receive, send)
        limited, edge = scope.get(LIMITED), scope.get(EDGE)
        is_outermost = limited is None
        if limited is None:
            limited = scope[LIMITED] = Limited(limiter, scope.get("root_path", ""))
        if edge is None:
            return self._answer(scope, receive, send, limited, is_outermost)
        if is_outermost:
            edge.answer_headers.append(limited.headers)
        charges = self._charges(client_ip(scope))
        try:
            if not limited.take_now(charges):
                return self._wait(scope, receive, send, limited, charges)
        except SvcInfraError as error:
            return _refuse(scope, send, error)
        return self.app(scope, receive, send)

    async def _wait(
        self, scope: Scope, receive: Receive, send: Send, limited: Limited, charges: Sequence[Charge]
    ) -> None:
        try:
            await limited.take(charges)
        except SvcInfraError as error:
            await _refuse(scope, send, error)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, limited: Limited, is_outermost: bool) -> None:
        """Answer one request where no edge sends the headers, and none answers what escapes."""
        answer = _Answer(send, limited if is_outermost else None)
        token = enter(current())  # where nothing has before, so that dependencies can note whom they have verified
        try:
            await limited.take(self._charges(client_ip(scope)))
            await self.app(scope, receive, answer)
        except Exception as error:
            if error is not limited.refusal or answer.begun:
                raise
            await _refuse(scope, answer, error)  # also of a route, in an app that does not answer such errors
        finally:
            leave(token)

    def _charges_of(self, peer: str) -> tuple[Charge, ...]:
        client = network(peer)
        return tuple([charge("ip", rate, 1, "", "ip", client) for rate in self._rates])

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            limiter = self._started()
        except SvcInfraError as error:
            await send({"type": "lifespan.startup.failed", "message": error.detail})
            raise
        try:
            await self.app(scope, receive, send)
        finally:
            self._limiter = None
            if self._store is None:
                await limiter.store.close()

    def _started(self) -> Limiter:
        wiring = current_wiring()
        settings = wiring.settings if wiring is not None else Settings()
        on_outage = self._on_outage or settings.rate_limit.on_outage
        self._metrics_page = metrics_page()
        self._limiter = Limiter(self._store or store_of(settings), on_outage=on_outage)
        return self._limiter


class _Answer:
    """Adds the headers to an answer, whoever gives it; those of nothing where `limited` is None."""

    __slots__ = ("_limited", "_send", "begun")

    def __init__(self, send: Send, limited: Limited | None) -> None:
        self._send = send
        self._limited = limited
        self.begun = False

    async def __call__(self, message: Message) -> None:
        """Pass on what is sent."""
        if message["type"] in _STARTS:
            self.begun = True
            if self._limited is not None:
                message = {**message, "headers": [*message.get("headers", ()), *self._limited.headers()]}
        await self._send(message)


def _is_preflight(scope: Scope) -> bool:
    return scope.get("method") == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


async def _refuse(scope: Scope, send: Send, error: Exception) -> None:
    if scope["type"] == "http":
        await respond(scope, send, error, expose=False)
    else:
        await refuse(scope, send, error, expose=False, is_open=False)
