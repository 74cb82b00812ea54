"""What a client's idempotency key is, whose it is, and which request it stands for."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence

from svc_infra.errors import IdempotencyKeyMalformedError

KEY_HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255

_QUOTABLE = r'(?:[ !#-\[\]-~]|\\["\\])'  # what a String holds: RFC 9651, section 3.3.3
_BARE = r"[!#-+\--:<-\[\]-~]"  # visible ASCII without " , ; and the backslash
KEY_PATTERN = f'^({_BARE}{{1,{MAX_KEY_CHARACTERS}}}|"{_QUOTABLE}{{1,{MAX_KEY_CHARACTERS}}}")$'
"""The values that `parse_key` reads, for the documentation of an API."""

_STRING = re.compile(f'"({_QUOTABLE}*)"')
_TOKEN = re.compile(f"{_BARE}+")


def parse_key(values: Sequence[str]) -> str | None:
    """The key that a request sends; None when it sends none.

    The specified form is a String (`"8e03978e"`, quotes included); a bare value, which many clients send, is the same
    key as the quoted one. draft-ietf-httpapi-idempotency-key-header, section 2.1.

    Args:
        values: The header's values, one for each time that it was sent.

    Raises:
        IdempotencyKeyMalformedError: It is empty, too long, of another form, or was sent more than once.
    """
    if not values:
        return None
    if len(values) > 1:
        raise IdempotencyKeyMalformedError(f"Send {KEY_HEADER} once.")
    value = values[0].strip(" \t")
    if len(value) <= 2 * MAX_KEY_CHARACTERS + 2:
        if quoted := _STRING.fullmatch(value):
            key = re.sub(r"\\(.)", r"\1", quoted[1])
        else:
            key = value if _TOKEN.fullmatch(value) else ""
        if 0 < len(key) <= MAX_KEY_CHARACTERS:
            return key
    raise IdempotencyKeyMalformedError(
        f'{KEY_HEADER} must be a quoted string of 1 to {MAX_KEY_CHARACTERS} ASCII characters, such as "8e03978e-40d5".'
    )


class CallersKey:
    """One caller's key on one route.

    Both digests are keyed with the whole of it, so that whoever reads the store can neither guess payloads nor use
    the keys that they see.

    Args:
        caller: Who sends the request; never taken from what the request merely claims.
        method: The request's method.
        route: The template of its route.
        key: The client's key.
    """

    def __init__(self, *, caller: str, method: str, route: str, key: str) -> None:
        self._secret = _joined(part.encode("utf-8", "surrogatepass") for part in (caller, method, route, key))

    def digest(self) -> str:
        """The name under which the key is stored."""
        return hmac.digest(self._secret, b"key", "sha256").hex()

    def fingerprint(self, parts: Iterable[bytes]) -> str:
        """What tells this request from another one with the same key."""
        return hmac.digest(self._secret, b"request" + _joined(parts), "sha256").hex()


def _joined(parts: Iterable[bytes]) -> bytes:
    """Parts in one text that no other parts make."""
    return b"".join(len(part).to_bytes(8) + part for part in parts)
