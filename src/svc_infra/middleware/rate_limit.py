"""Rate limit for each client, as a middleware of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.errors import RateLimitedError
from svc_infra.middleware._scope import client_ip
from svc_infra.middleware._websocket import refuse
from svc_infra.middleware.gcra import Rate, Verdict, gcra
from svc_infra.middleware.problem import Headers, respond

MAX_KEYS = 65_536
"""Clients that are remembered; when more come, the one not heard of for longest is forgotten."""


class RateLimitMiddleware:
    """Answers 429 to a client that sends more than the rate allows; every answer says how much is left.

    A client is the peer's address, or its /64 network under IPv6. It is counted in this process only: with several
    workers each allows the rate.

    Args:
        app: The rest of the stack.
        rate: How many requests in which time, such as `100/minute`; as many may come at once.
        exempt_prefixes: Paths that are never limited.
        max_keys: Clients that are remembered.
        clock_ns: A clock in nanoseconds that does not go back.

    Raises:
        ConfigurationError: The rate cannot be understood.
    """

    def __init__(
        self,
        app: ASGIApp,
        rate: str = "100/minute",
        *,
        exempt_prefixes: tuple[str, ...] = ("/_ops/",),
        max_keys: int = MAX_KEYS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.app = app
        self._rate = Rate.parse(rate)
        self._exempt_prefixes = exempt_prefixes
        self._max_keys = max_keys
        self._clock_ns = clock_ns
        self._states: dict[str, int] = {}  # least recently used first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or scope["path"].startswith(self._exempt_prefixes):
            await self.app(scope, receive, send)
            return
        verdict = self._decide(_client(scope))
        headers = self._headers(verdict)
        if verdict.allowed:

            async def send_with_headers(message: Message) -> None:
                if message["type"] in ("http.response.start", "websocket.accept"):
                    message = {**message, "headers": [*message.get("headers", ()), *headers]}
                await send(message)

            await self.app(scope, receive, send_with_headers)
            return
        error = RateLimitedError(retry_after_seconds=verdict.retry_after_seconds)
        if scope["type"] == "http":
            await respond(scope, send, error, expose=False, headers=headers)
        else:
            await refuse(scope, send, error, expose=False, is_open=False)

    def _decide(self, key: str) -> Verdict:
        verdict = gcra(self._states.pop(key, 0), self._clock_ns(), self._rate)
        if len(self._states) >= self._max_keys:
            del self._states[next(iter(self._states))]
        self._states[key] = verdict.state
        return verdict

    def _headers(self, verdict: Verdict) -> Headers:
        reset = math.ceil(time.time() + verdict.reset_after_seconds)
        return [
            (b"x-ratelimit-limit", str(self._rate.limit).encode()),
            (b"x-ratelimit-remaining", str(verdict.remaining).encode()),
            (b"x-ratelimit-reset", str(reset).encode()),
        ]


def _client(scope: Scope) -> str:
    address = client_ip(scope)
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or parsed.packed[:8].hex())
