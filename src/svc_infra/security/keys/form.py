"""What a key looks like: `svc_` + 4 characters that mark the owner + 30 random ones + 6 of a checksum.

The prefix lets scanners find leaked keys, and the checksum (CRC-32 in base 62, as GitHub's tokens have) lets everybody
refuse a misspelled or invented key without asking a database. The mark tells nothing but which keys have one owner:
what is remembered of them is forgotten together.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from secrets import choice
from uuid import UUID
from zlib import crc32

from svc_infra.errors import ConfigurationError

RANDOM_CHARACTERS = 30
"""178 bits."""
MARK_CHARACTERS = 4
MAX_KEY_CHARACTERS = 64

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHECKSUM_CHARACTERS = 6  # 62 ** 6 > 2 ** 32
_PREFIX = re.compile(r"[a-z][a-z0-9]{1,15}")
_KEY = re.compile(rf"[a-z][a-z0-9]{{1,15}}_[0-9A-Za-z]{{{MARK_CHARACTERS + RANDOM_CHARACTERS + _CHECKSUM_CHARACTERS}}}")


class KeyForm:
    """Draws keys.

    Args:
        prefix: What they begin with: 2 to 16 lower-case letters and digits.

    Raises:
        ConfigurationError: The prefix is another text.
    """

    def __init__(self, prefix: str = "svc") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"{prefix!r} cannot begin a key: use 2 to 16 lower-case letters and digits.")
        self._prefix = prefix

    def draw(self, owner_id: UUID) -> str:
        """A new key of this owner."""
        body = f"{self._prefix}_{owner_mark(owner_id)}{''.join(choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))}"
        return body + _checksum(body)


def is_key(credential: str) -> bool:
    """Whether a credential has the form of a key and the right checksum; prefixes of the past are accepted."""
    if len(credential) > MAX_KEY_CHARACTERS or not _KEY.fullmatch(credential):
        return False
    return credential[-_CHECKSUM_CHARACTERS:] == _checksum(credential[:-_CHECKSUM_CHARACTERS])


def owner_mark(owner_id: UUID) -> str:
    """What every key of this owner has."""
    return _base62(int.from_bytes(blake2b(owner_id.bytes, digest_size=8).digest(), "big"), MARK_CHARACTERS)


def mark_of(key: str) -> str:
    """The mark in a key."""
    return key.partition("_")[2][:MARK_CHARACTERS]


def _checksum(body: str) -> str:
    return _base62(crc32(body.encode()), _CHECKSUM_CHARACTERS)


def _base62(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
