"""What GitHub reports of keys that it found in public code, as it signs and writes it.

Source: https://docs.github.com/code-security/secret-scanning/secret-scanning-partner-program
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from svc_infra.errors import InvalidSignatureError, UnavailableError, UpstreamError, ValidationError
from svc_infra.http import HttpClient
from svc_infra.types import Clock

REMEMBERED_SECONDS = 3600.0
ASKED_INTERVAL_SECONDS = 300.0
"""Between two looks for a key that is not there: forged reports must not make us call GitHub, which limits that."""
MAX_MATCHES = 1000
"""Found keys in one report."""
MAX_PUBLIC_KEYS = 100

_KEY_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
_SIGNATURE = re.compile(r"[0-9A-Za-z+/]{1,250}={0,2}")


@dataclass(frozen=True, slots=True)
class Match:
    """Something found that has the form of a key.

    Attributes:
        token: It.
        kind: What GitHub calls keys of this form.
        url: Where it was found; may be empty.
    """

    token: str = field(repr=False)
    kind: str
    url: str


class GithubReports:
    """Verifies and reads reports, with the keys that GitHub publishes.

    Args:
        http: What asks for the keys.
        keys_url: Where they are.
        clock: Where the time comes from.
    """

    def __init__(self, http: HttpClient, *, keys_url: str, clock: Clock) -> None:
        self._http = http
        self._keys_url = keys_url
        self._clock = clock
        self._lock = asyncio.Lock()
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._read_at: datetime | None = None
        self._asked_at: datetime | None = None

    async def read(self, body: bytes, *, key_id: str, signature: str) -> list[Match]:
        """What a report says, once its signature was verified.

        Args:
            body: Exactly as it was sent.
            key_id: The header `Github-Public-Key-Identifier`.
            signature: The header `Github-Public-Key-Signature`.

        Raises:
            InvalidSignatureError: GitHub has not signed this.
            UpstreamError: GitHub's keys cannot be had.
            UnavailableError: They could not be had a moment ago.
            ValidationError: It is signed, and no report.
        """
        if not _KEY_ID.fullmatch(key_id) or not _SIGNATURE.fullmatch(signature):
            raise InvalidSignatureError("This needs the headers that GitHub signs its reports with.")
        key = await self._key(key_id)
        try:
            if key is None:
                raise InvalidSignature
            key.verify(b64decode(signature), body, ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            raise InvalidSignatureError("GitHub has not signed this report.") from None
        return _matches(body)

    async def _key(self, key_id: str) -> EllipticCurvePublicKey | None:
        async with self._lock:
            now = self._clock.now()
            is_old = self._read_at is None or now - self._read_at >= timedelta(seconds=REMEMBERED_SECONDS)
            if is_old or key_id not in self._keys:
                if self._asked_at is None or now - self._asked_at >= timedelta(seconds=ASKED_INTERVAL_SECONDS):
                    self._asked_at = now
                    self._keys, self._read_at = await self._published(), now
                elif is_old:
                    raise UnavailableError(
                        "GitHub's keys could not be had a moment ago.", retry_after_seconds=ASKED_INTERVAL_SECONDS
                    )
            return self._keys.get(key_id)

    async def _published(self) -> dict[str, EllipticCurvePublicKey]:
        answer = await self._http.request("GET", self._keys_url, headers={"accept": "application/json"})
        try:
            said = orjson.loads(answer.body) if answer.status == 200 else None
        except orjson.JSONDecodeError:
            said = None
        listed = said.get("public_keys") if isinstance(said, dict) else None
        if not isinstance(listed, list):
            raise UpstreamError("GitHub did not say what it signs its reports with.")
        keys = {one.get("key_identifier"): _imported(one) for one in listed[:MAX_PUBLIC_KEYS] if isinstance(one, dict)}
        return {name: key for name, key in keys.items() if isinstance(name, str) and key is not None}


def _imported(said: dict[str, Any]) -> EllipticCurvePublicKey | None:
    try:
        key = load_pem_public_key(str(said.get("key")).encode())
    except (ValueError, UnsupportedAlgorithm):
        return None  # one key that nobody can read must not take the others away
    return key if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1) else None


def _matches(body: bytes) -> list[Match]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, list) or len(said) > MAX_MATCHES or not all(isinstance(one, dict) for one in said):
        raise ValidationError(f"A report is a list of at most {MAX_MATCHES} objects.")
    return [
        Match(token, str(one.get("type", "")), str(one.get("url", "")))
        for one in said
        if isinstance(token := one.get("token"), str)
    ]
