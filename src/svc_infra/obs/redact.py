"""What may leave the process in a log line or in the answer to an error: no secret, nothing unbounded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson

REDACTED = "[redacted]"
MAX_TEXT_CHARS = 16 * 1024
"""Longest message, field or stack in a log line; the rest is cut and counted."""
MAX_KEY_CHARS = 128
MAX_DEPTH = 6
MAX_VALUES = 500
"""Most values that the fields of one log line may hold, at all depths together."""

_MARGIN_CHARS = 1024  # read beyond the cut, so that a secret which the cut would halve is still recognised
_SECRET_KEY = re.compile(
    r"passw|passphrase|secret|token|authorization|cookie|credential|signature"
    r"|(?:api|private|signing|encryption|access|master)[_-]?key|session[_-]?id"
    r"|(?:^|[_.-])(?:auth|cvc|cvv|jwt|otp|pin|pwd)$",
    re.IGNORECASE,
)
# Every pattern below is linear: its repeats are bounded or cannot begin again inside their own match.
_URL_PASSWORD = re.compile(r"://([^\s:/@]*):[^\s/]+@")
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}")
_SCHEME = re.compile(r"\b((?i:bearer))\s{1,4}[^\s\"',;]+|\b((?i:basic))\s{1,4}(?=[a-z]*[A-Z0-9+/=])[A-Za-z0-9+/=]{4,}")
_PAIR = re.compile(
    r"((?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|authorization|cookie|signature)[\w-]{0,16}"
    r"(?:[\"']?\s{0,3}=|[\"']\s{0,3}:)\s{0,3})(?:\"[^\"]*\"?|'[^']*'?|[^\s\"'&,;\[]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"((?:authorization|cookie|api[_-]?key|password)\s{0,3}:\s{0,3})[^\r\n]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without what looks like a credential: bearer and basic ones, JWTs, `password=…`, passwords in URLs."""
    if "eyJ" in text:
        text = _JWT.sub(REDACTED, text)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower:
        text = _SCHEME.sub(lambda match: f"{match[1] or match[2]} {REDACTED}", text)
    if ":" in text:
        text = _URL_PASSWORD.sub(rf"://\1:{REDACTED}@", text)
        text = _HEADER.sub(rf"\1{REDACTED}", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(rf"\1{REDACTED}", text)
    return text


def shown(text: str, *, keep_end: bool = False) -> str:
    """The text redacted, cut to `MAX_TEXT_CHARS` and marked where it was longer."""
    excess = len(text) - MAX_TEXT_CHARS
    if excess <= 0:
        return redacted(text)
    mark, reach = f"[{excess} characters cut]", MAX_TEXT_CHARS + _MARGIN_CHARS
    if keep_end:
        return f"{mark} {redacted(text[-reach:])[-MAX_TEXT_CHARS:]}"
    return f"{redacted(text[:reach])[:MAX_TEXT_CHARS]} {mark}"


@lru_cache(maxsize=1024)
def is_secret(key: str) -> bool:
    """Whether a field of this name holds a credential."""
    return _SECRET_KEY.search(key) is not None


def printable(value: object) -> str:
    """`str(value)`, also where that raises."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a line is worth more than one value of it, and it says what failed
        return f"<{type(value).__name__} that cannot be printed: {type(error).__name__}>"


def cleaned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a log line may show: JSON types only, secrets redacted, long and deep values cut."""
    return _Cleaner().mapping(fields, 0)


class _Cleaner:
    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def mapping(self, fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        for key, value in islice(fields.items(), self.left):
            name = printable(key)[:MAX_KEY_CHARS]
            secret = is_secret(name) and value is not None and not isinstance(value, bool)
            clean[name] = REDACTED if secret else self.value(value, depth)
        return clean

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if isinstance(value, str):
            return shown(value)
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if value.bit_length() < 64 else shown(printable(value))
        if isinstance(value, datetime | date):
            return value.isoformat()
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if depth >= MAX_DEPTH or self.left <= 0:
                return f"[{len(value)} values cut]"
            return self.mapping(value, depth + 1) if isinstance(value, Mapping) else self.sequence(value, depth + 1)
        return shown(printable(value))

    def sequence(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.value(value, depth) for value in islice(values, self.left)]


def to_json(value: Any) -> bytes:
    """The value as JSON, also where it holds lone surrogates or types that JSON does not know."""
    try:
        return orjson.dumps(value, default=printable, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return json.dumps(value, default=printable, skipkeys=True).encode()
