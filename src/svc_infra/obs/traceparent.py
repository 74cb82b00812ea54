"""W3C Trace Context: which trace a request belongs to (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceParent(NamedTuple):
    """The caller's place in its trace."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(value: str) -> TraceParent | None:
    """Read a `traceparent` header.

    A version above 00 is read by its first four fields; version ff, ids of zeros, capitals and anything else are
    refused.

    Args:
        value: The header's value.

    Returns:
        The caller's place in its trace, or None when the header is not valid: start a new trace.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    return TraceParent(match[2], match[3], bool(int(match[4], 16) & 1))


def make_traceparent(parent: TraceParent) -> str:
    """The `traceparent` header, version 00, for a call made from this place in a trace."""
    return f"00-{parent.trace_id}-{parent.span_id}-{'01' if parent.sampled else '00'}"


def new_trace_id() -> str:
    """A random trace id: 16 bytes in lower-case hexadecimal."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """A random span id: 8 bytes in lower-case hexadecimal."""
    return os.urandom(8).hex()
