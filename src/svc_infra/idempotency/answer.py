"""An answer that can be given again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

REPLAY_HEADER = (b"idempotent-replayed", b"true")

_PASSING_STATUSES = frozenset({401, 403, 408, 425, 429})
"""They say something about the moment or the credential: the same request may fare better later."""
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)  # RFC 9110, section 7.6.1
_SECRET = re.compile(rb"cookie|auth|token|secret|session|api-?key|csrf|xsrf|password|credential")
"""What is in the name of every header that carries a credential; better one header too many than one too few."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is stored: without cookies, credentials and what belongs to one connection."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Answer:
        """The storable part of an answer."""
        kept = [(name.lower(), value) for name, value in headers]
        named = b",".join(value for name, value in kept if name == b"connection").lower().split(b",")
        dropped = _HOP_BY_HOP.union(name.strip() for name in named)
        return cls(status, tuple(pair for pair in kept if pair[0] not in dropped and not _SECRET.search(pair[0])), body)

    @property
    def is_final(self) -> bool:
        """Whether the same request would get this answer again; else it is not stored."""
        return 200 <= self.status < 500 and self.status not in _PASSING_STATUSES

    @property
    def size_bytes(self) -> int:
        """The size of headers and body."""
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers)

    def packed_headers(self) -> str:
        """The headers as JSON."""
        return orjson.dumps(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        ).decode()

    @classmethod
    def unpacked(cls, status: int, headers: str | bytes, body: bytes) -> Answer:
        """An answer whose headers were packed."""
        pairs = orjson.loads(headers)
        return cls(status, tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs), body)
