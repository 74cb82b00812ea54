"""Who really asks, when proxies stand in front of the service."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from svc_infra.errors import ConfigurationError

MAX_HOPS = 32
"""Proxies that a request may have passed; whoever is named before them is not looked at."""
MAX_REMEMBERED = 4096
MAX_NODE_CHARS = 64
"""Longest address with its port; what is longer is none."""
UNIX = "unix"
"""Stands for the peer of a Unix socket among the trusted proxies."""

_FORWARDED_PAIR = re.compile(r'([A-Za-z-]+)=(?:"([^"\\]*)"|([A-Za-z0-9!#$%&\'*+.^_`|~-]*))')
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?")
_WITH_PORT = re.compile(r"([0-9.]+):([0-9]{1,5})")
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_SECURE_OF = {
    "http": {"http": "http", "https": "https"},
    "websocket": {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"},
}


class Hop(NamedTuple):
    """What one proxy says about who asked it; empty where it says nothing that can be used."""

    client: str
    port: int = 0
    scheme: str = ""
    host: str = ""


class TrustedProxies:
    """Finds the client behind proxies that are trusted.

    The addresses are read from the right, where the nearest proxy has written its own: the first one that is no trusted
    proxy is the client, and whatever stands before it is the client's own invention.

    Args:
        proxies: Addresses and networks, such as `10.0.0.0/8`; `unix` is the peer of a Unix socket.
        header: The headers that the proxies write: `x-forwarded` or `forwarded` (RFC 7239). The other ones are never
            read, because a proxy that does not know them passes on what the client has sent.
        forwarded_host: Whether the proxies write `X-Forwarded-Host`, which many leave as the client has sent it. What
            they write of the host in `Forwarded` is always read.

    Raises:
        ConfigurationError: One of them is no network, or there is no such header.
    """

    def __init__(self, proxies: Iterable[str], *, header: str = "x-forwarded", forwarded_host: bool = False) -> None:
        if header not in ("x-forwarded", "forwarded"):
            raise ConfigurationError(f"The forwarded header is {header!r}: use x-forwarded or forwarded.")
        names = set(proxies)
        self._trusts_unix = UNIX in names
        try:
            self._networks: list[IPv4Network | IPv6Network] = [ip_network(name) for name in names - {UNIX}]
        except ValueError as error:
            raise ConfigurationError(f"A trusted proxy is wrong: {error}.") from None
        self._hops = partial(_x_forwarded, hosts=forwarded_host) if header == "x-forwarded" else _forwarded
        self._is_trusted = lru_cache(maxsize=MAX_REMEMBERED)(self._is_in_a_network)

    def __bool__(self) -> bool:
        """Whether anybody is trusted."""
        return self._trusts_unix or bool(self._networks)

    def apply(self, scope: Scope) -> None:
        """Set the request's client, scheme and host to what its client used, when its peer is a trusted proxy."""
        peer = scope.get("client")
        if not (self._is_trusted(str(peer[0])) if peer else self._trusts_unix):
            return
        found: Hop | None = None
        for hop in islice(self._hops(scope["headers"]), MAX_HOPS):
            if not hop.client:
                break
            found = hop
            if not self._is_trusted(hop.client):
                break
        if found is None:
            return
        scope["client"] = (found.client, found.port)
        if scheme := _SECURE_OF[scope["type"]].get(found.scheme):
            scope["scheme"] = scheme
        if found.host:
            host = found.host.lower().encode("latin-1")
            scope["headers"] = [*(header for header in scope["headers"] if header[0] != b"host"), (b"host", host)]

    def _is_in_a_network(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


class TrustedProxiesMiddleware:
    """Makes the client behind trusted proxies the client of the request.

    Leave uvicorn's own `--proxy-headers` off: two that rewrite the same request trust more than either.

    Args:
        app: The rest of the stack.
        proxies: As for `TrustedProxies`.
        header: As for `TrustedProxies`.
        forwarded_host: As for `TrustedProxies`.
    """

    def __init__(
        self, app: ASGIApp, proxies: Iterable[str], *, header: str = "x-forwarded", forwarded_host: bool = False
    ) -> None:
        self.app = app
        self._proxies = TrustedProxies(proxies, header=header, forwarded_host=forwarded_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "lifespan":
            self._proxies.apply(scope)
        await self.app(scope, receive, send)


def _x_forwarded(headers: Iterable[tuple[bytes, bytes]], *, hosts: bool) -> Iterator[Hop]:
    """The hops that `X-Forwarded-*` name, nearest first."""
    headers = list(headers)
    clients = _listed(headers, b"x-forwarded-for")
    schemes, names = _listed(headers, b"x-forwarded-proto"), _listed(headers, b"x-forwarded-host") if hosts else []
    for number, client in enumerate(clients):
        scheme, host = (  # proxies write these two for every hop, or once for all of them
            values[number] if len(values) == len(clients) else values[0] if values else ""
            for values in (schemes, names)
        )
        yield _hop(client, scheme, host)


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[Hop]:
    """The hops that `Forwarded` names, nearest first; one that is malformed ends the list."""
    value = ",".join(value.decode("latin-1") for name, value in headers if name == b"forwarded")
    for element in _elements_from_the_right(value):
        pairs: dict[str, str] = {}
        for pair in filter(None, element.split(";")):
            match = _FORWARDED_PAIR.fullmatch(pair.strip(" \t"))
            if match is None or match[1].lower() in pairs:
                return
            pairs[match[1].lower()] = match[2] if match[2] is not None else match[3]
        yield _hop(pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", ""))


def _elements_from_the_right(value: str) -> Iterator[str]:
    """The elements of a list, last first; so an open quote of the client's cannot swallow what the proxies wrote."""
    parts: list[str] = []  # of one element, last first
    for number, segment in enumerate(reversed(value.split('"'))):
        if number % 2:  # between two quotes
            parts.append(f'"{segment}"')
            continue
        *before, last = segment.split(",")
        parts.append(last)
        for first in reversed(before):
            yield "".join(reversed(parts)).strip(" \t")
            parts = [first]
    yield "".join(reversed(parts)).strip(" \t")


def _listed(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """The values of a header, last first."""
    joined = b",".join(value for key, value in headers if key == name).decode("latin-1")
    return [part.strip(" \t") for part in reversed(joined.split(","))] if joined else []


def _hop(node: str, scheme: str, host: str) -> Hop:
    client, port = _node(node)
    return Hop(client, port, scheme.lower(), host if _HOST.fullmatch(host) else "")


def _node(text: str) -> tuple[str, int]:
    """An address, and its port or 0; an address of another kind, such as `unknown`, is empty."""
    if len(text) > MAX_NODE_CHARS:
        return "", 0
    match = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    address, port = (match[1], int(match[2] or 0)) if match else (text, 0)
    parsed = _address(address)
    return (str(parsed), port) if parsed is not None and port <= 65535 else ("", 0)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
