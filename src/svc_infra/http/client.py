"""Calling other services, within limits."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Self

import httpcore2
import orjson

from svc_infra import __version__
from svc_infra.errors import EgressRefusedError, SvcInfraError, UpstreamError
from svc_infra.http.calls import measured, trace_headers
from svc_infra.http.errors import translated
from svc_infra.http.guard import Guard, GuardedBackend, Resolve, resolve
from svc_infra.obs.context import seconds_left

MAX_CONNECTIONS = 100
MAX_IDLE_CONNECTIONS = 20
IDLE_SECONDS = 5.0
CONNECT_TIMEOUT_SECONDS = 5.0
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})  # these say `Content-Length: 0` when there is none
_FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whatever its status.

    Attributes:
        status: Such as 200; a redirect is an answer like any other and is not followed.
        headers: By lower-case name; repeated ones are joined with a comma (RFC 9110, section 5.3).
        body: The bytes as they were sent; the client asks for no compression.
        elapsed_seconds: From the call to the last byte.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    elapsed_seconds: float


class HttpClient:
    """Sends requests to other services: no redirects, no cookies, no proxies from the environment, no retries.

    A call carries the request id and the trace of the request or job that makes it, and takes no longer than that
    request may take. Connections are kept open for `IDLE_SECONDS` and reused for the same scheme, host and port.
    Response headers are bounded by 100 KiB.

    Args:
        timeout_seconds: Longest time for a whole call, from resolving the name to the last byte of the answer.
        max_response_bytes: A longer body is refused, and its connection dropped.
        allow_private_addresses: Allow loopback and private addresses; see `Guard`.
        user_agent: The `User-Agent` header.
        ssl_context: What to trust; the operating system's authorities by default.
        resolve: Finds a host's addresses; the operating system by default.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 10.0,
        max_response_bytes: int = 1024 * 1024,
        allow_private_addresses: bool = False,
        user_agent: str = f"svc-infra/{__version__}",
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_response_bytes = max_response_bytes
        self._user_agent = user_agent
        self._guard = Guard(allow_private_addresses=allow_private_addresses, resolve=resolve)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or httpcore2.default_ssl_context(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=GuardedBackend(self._guard),
        )

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        json: object = None,
        timeout_seconds: float | None = None,
        truncate: bool = False,
    ) -> Response:
        """Send a request and read the whole answer.

        Args:
            content: The body.
            json: The body as an object instead; sets `Content-Type`.
            timeout_seconds: Replaces the client's own for this call.
            truncate: Keep the first `max_response_bytes` of a longer body instead of refusing it.

        Raises:
            EgressRefusedError: This address may not be called.
            DeadlineExceededError: The answer was not complete in time.
            UpstreamError: The other service cannot be reached, breaks off, speaks no HTTP, or answers too much.
        """
        started = time.perf_counter()
        seconds = min(self._timeout_seconds if timeout_seconds is None else timeout_seconds, seconds_left())
        target, method = self._guard.url(url), method.upper()
        sent = {
            "host": target.netloc.decode("ascii"),
            "user-agent": self._user_agent,
            "accept": "*/*",
            "accept-encoding": "identity",
        }
        if json is not None:
            content = orjson.dumps(json)
            sent["content-type"] = "application/json"
        elif content is None and method in _WITH_BODY:
            content = b""
        own = {name.lower(): value for name, value in (headers or {}).items()}
        address = httpcore2.URL(
            scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
        )
        with measured(method, target) as call, _translating():
            sent = {**sent, **trace_headers(), **own}
            async with asyncio.timeout(seconds):
                timeouts = {"connect": min(CONNECT_TIMEOUT_SECONDS, seconds)}  # the rest shares what is left
                async with self._pool.stream(
                    method,
                    address,
                    headers=list(sent.items()),
                    content=content,
                    extensions={"timeout": timeouts},
                ) as response:
                    body = await self._read(response, truncate=truncate)
            call.answered(response.status)
        return Response(response.status, _joined(response.headers), body, time.perf_counter() - started)

    async def check(self, url: str) -> None:
        """Refuse a URL now that would be refused when it is called, such as one that a user asks to be called.

        Raises:
            EgressRefusedError: It may not be called, or its host cannot be found.
        """
        target = self._guard.url(url)
        host = target.raw_host.decode("ascii")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._guard.addresses(host, target.port or 443)
        except (TimeoutError, UpstreamError) as error:
            raise EgressRefusedError(f"{host} cannot be found.") from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _read(self, response: httpcore2.Response, *, truncate: bool) -> bytes:
        body = bytearray()
        async with aclosing(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > self._max_response_bytes:
                    if not truncate:
                        raise UpstreamError(f"The other service answered more than {self._max_response_bytes} bytes.")
                    return bytes(body[: self._max_response_bytes])
        return bytes(body)


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except SvcInfraError:
        raise
    except _FAILURES as error:
        raise translated(error) from error


def _joined(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
