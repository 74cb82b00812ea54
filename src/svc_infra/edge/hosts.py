"""Which hosts the service answers for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from svc_infra.errors import BadRequestError

_HOST = re.compile(rb"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class TrustedHosts:
    """Refuses requests to other hosts, whose names would end up in links and caches.

    Args:
        hosts: Names such as `api.example.com`; `*.example.com` is every name below.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        names = {host.lower().encode("ascii") for host in hosts}
        self._names = frozenset(name for name in names if not name.startswith(b"*."))
        self._endings = tuple(name[1:] for name in names if name.startswith(b"*."))

    def __bool__(self) -> bool:
        """Whether any host is refused."""
        return bool(self._names or self._endings)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Refuse a request that names no host, several, or another one.

        Raises:
            BadRequestError: It does.
        """
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) == 1 and hosts[0] in self._names:
            return
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is not None:
            name = match[1].lower()
            if name in self._names or (self._endings and name.endswith(self._endings)):
                return
        raise BadRequestError("This service does not answer for that host.")
