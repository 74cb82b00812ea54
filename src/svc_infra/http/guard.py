"""Which addresses the service may call (OWASP: server-side request forgery prevention)."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import httpcore2
import httpx2

from svc_infra.errors import EgressRefusedError, UpstreamError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_PORT = 65535
_NAME = rb"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?"
_IPV6 = rb"[0-9a-f:]+(\.[0-9]+){0,3}"
_HOST = re.compile(_NAME + b"|" + _IPV6)


def _networks(*networks: str) -> tuple[Network, ...]:
    return tuple(ip_network(network) for network in networks)


_PRIVATE = _networks("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
# The rest of IANA's special-purpose address registries (RFC 6890 and its updates), and metadata services elsewhere.
_SPECIAL = _networks(
    "0.0.0.0/8",  # this host
    "100.64.0.0/10",  # carrier-grade NAT; Alibaba Cloud's metadata service
    "168.63.129.16/32",  # Azure's metadata service, in public space
    "169.254.0.0/16",  # link-local; the metadata service of most clouds
    "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata service
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "2001::/23",  # protocol assignments; Teredo tunnels
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4 tunnels
    "3fff::/20",  # documentation
    "fd00:ec2::254/128",  # the metadata service of AWS, in private space
    "fd20:ce::254/128",  # the metadata service of Google Cloud, in private space
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # no other part of IPv6 is in public use
_NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address as an IPv6-only host sees it (RFC 6052)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as the operating system finds them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Guard:
    """Decides which URLs and addresses may be called.

    Refused always: other schemes than http and https, user names and passwords, link-local addresses and metadata
    services, multicast, reserved and documentation addresses, tunnels. An IPv4 address inside an IPv6 one is judged as
    the IPv4 address. A network with its own NAT64 prefix must keep that prefix from routing inwards itself.

    Args:
        allow_private_addresses: Allow loopback, RFC 1918 and unique local addresses, for development and for services
            that call each other. Never set it where strangers choose the URL.
        resolve: Finds a host's addresses.
    """

    def __init__(self, *, allow_private_addresses: bool = False, resolve: Resolve = resolve) -> None:
        self._allow_private = allow_private_addresses
        self._resolve = resolve

    def url(self, url: str) -> httpx2.URL:
        """The parsed URL.

        Raises:
            EgressRefusedError: It is malformed, has another scheme, or carries a user name or password.
        """
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL:
            raise EgressRefusedError("The URL is malformed.") from None
        if parsed.scheme not in ("http", "https"):
            raise EgressRefusedError("The URL must begin with http:// or https://.")
        if parsed.userinfo:
            raise EgressRefusedError("The URL must not carry a user name or password.")
        if not _HOST.fullmatch(parsed.raw_host):
            raise EgressRefusedError("The URL names no proper host.")
        if parsed.port is not None and not 1 <= parsed.port <= MAX_PORT:
            raise EgressRefusedError("The URL names no proper port.")
        return parsed

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, every one of them checked.

        Raises:
            EgressRefusedError: One of them may not be called; the message does not tell which, nor what it is.
            UpstreamError: The name does not resolve.
        """
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise UpstreamError(f"{host} cannot be found.") from error
        addresses = [_plain(ip_address(address)) for address in dict.fromkeys(found)]
        if not addresses or not all(self._may_be_called(address) for address in addresses):
            raise EgressRefusedError(f"{host} may not be called: its address is not public.")
        return [str(address) for address in addresses]

    def _may_be_called(self, address: Address) -> bool:
        if _in(address, _SPECIAL):
            return False
        if _in(address, _PRIVATE):
            return self._allow_private
        return address.version == 4 or address in _GLOBAL_UNICAST


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects a pool's connections to checked addresses only.

    The check happens where the connection is made, on the address that it is made to: there is no moment in between in
    which a name could come to mean something else. Host header, SNI and certificate check keep the name.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first of the host's addresses that answers; together they get `timeout` seconds."""
        addresses = await self._guard.addresses(host, port)
        share = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, share, local_address, socket_options)


def _plain(address: Address) -> Address:
    """The IPv4 address inside of an IPv4-mapped or NAT64 address; any other as it is."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
