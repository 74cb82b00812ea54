"""Signatures of webhooks: Standard Webhooks, and the plain `X-Signature` header beside it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence

from svc_infra.errors import ConfigurationError, InvalidSignatureError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix of every secret, not a secret
MAX_SIGNATURES = 20  # a header with more is refused unread


class WebhookSignature:
    """Signs and verifies webhooks by the Standard Webhooks scheme (https://www.standardwebhooks.com, `v1`).

    Signed is `id.timestamp.body`, so neither the body, the id nor the time can be changed, and an old request cannot
    be sent again after the tolerance.

    Args:
        secrets: One secret or several, `whsec_` and base64 of 24 to 64 bytes. All are signed with and accepted, which
            is what a rotation needs.
        tolerance_seconds: Largest accepted distance between the timestamp and now, in either direction.

    Raises:
        ConfigurationError: There is no secret, or one has the wrong form.
    """

    def __init__(self, secrets: str | Sequence[str], *, tolerance_seconds: float = 300.0) -> None:
        given = [secrets] if isinstance(secrets, str) else list(secrets)
        if not given:
            raise ConfigurationError("A webhook needs at least one signing secret: make one with new_secret().")
        self._keys = [_key(secret) for secret in given]
        self._tolerance_seconds = tolerance_seconds

    def sign(self, message_id: str, body: bytes, *, timestamp: int | None = None) -> dict[str, str]:
        """The headers that prove where a webhook comes from.

        Args:
            message_id: Unique for the event, the same for each of its attempts; receivers deduplicate by it.
            body: The exact bytes that are sent.
            timestamp: Unix time in seconds of this attempt; now when left out.

        Returns:
            `webhook-id`, `webhook-timestamp` and `webhook-signature`, and `X-Signature` (hex HMAC-SHA256 of the body
            alone by the first secret's text) for receivers that know only that.
        """
        moment = int(time.time()) if timestamp is None else timestamp
        signed = _signed(message_id, str(moment), body)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(moment),
            "webhook-signature": " ".join(f"v1,{_base64_mac(key, signed)}" for key, _ in self._keys),
            "X-Signature": _hex_mac(self._keys[0][1], body),
        }

    def verify(self, headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> str:
        """Check a received webhook.

        Args:
            headers: The request's headers, in any case.
            body: The raw bytes received, before any parsing.
            now: Unix time in seconds; the machine's when left out.

        Returns:
            The message id, to deduplicate by.

        Raises:
            InvalidSignatureError: A header is missing or malformed, the time is out of tolerance, or nothing matches.
        """
        lowered = {name.lower(): value for name, value in headers.items()}
        message_id, stamp = lowered.get("webhook-id", ""), lowered.get("webhook-timestamp", "")
        given = lowered.get("webhook-signature", "").split(" ")
        if not message_id or not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12) or not any(given):
            raise InvalidSignatureError("webhook-id, webhook-timestamp and webhook-signature must be present.")
        if abs((time.time() if now is None else now) - int(stamp)) > self._tolerance_seconds:
            raise InvalidSignatureError("The webhook's timestamp is too far from now.")
        if len(given) > MAX_SIGNATURES:
            raise InvalidSignatureError("The webhook carries too many signatures.")
        signed = _signed(message_id, stamp, body)
        accepted = [f"v1,{_base64_mac(key, signed)}".encode() for key, _ in self._keys]
        if not any(hmac.compare_digest(one.encode(errors="replace"), good) for one in given for good in accepted):
            raise InvalidSignatureError()
        return message_id


def verify_webhook_signature(payload: bytes, signature: str, secret: str) -> bool:
    """Whether `signature` (the `X-Signature` header) is the hex HMAC-SHA256 of `payload` under `secret`.

    Compares in constant time and never raises on malformed input. The header carries no time: prefer
    `WebhookSignature.verify`, which also refuses old requests.
    """
    if not secret:
        return False
    return hmac.compare_digest(_hex_mac(secret, payload).encode(), signature.strip().lower().encode(errors="replace"))


def new_secret() -> str:
    """A new signing secret of 32 random bytes."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(secret: str) -> tuple[bytes, str]:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigurationError("A webhook secret is `whsec_` and the base64 of 24 to 64 bytes: use new_secret().")
    return key, secret


def _signed(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode(errors="replace") + body


def _base64_mac(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _hex_mac(secret: str, body: bytes) -> str:
    return hmac.digest(secret.encode(), body, hashlib.sha256).hex()
