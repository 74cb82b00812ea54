"""Cookies that nobody can forge, and requests that no other site can send with them."""

from __future__ import annotations

import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from uuid import UUID

from starlette.datastructures import Headers

from svc_infra.errors import ConfigurationError, ForbiddenError, SvcInfraError
from svc_infra.security.cipher import FieldCipher
from svc_infra.security.keyring import KeyRing
from svc_infra.types import Clock, SystemClock

ACCESS_COOKIE = "__Host-access"
REFRESH_COOKIE = "__Host-refresh"
CSRF_COOKIE = "__Host-csrf"
SECOND_STEP_COOKIE = "__Host-second-step"
CSRF_HEADER = "x-csrf-token"
MAX_COOKIE_BYTES = 4096
"""What every browser keeps (RFC 6265, 6.1)."""

_MAC_BYTES = 32
_NONCE_BYTES = 16


class Cookies:
    """Values of cookies: signed, so that they can be read but not changed, or sealed, so that they cannot be read.

    Each is bound to the cookie's name, to a subject (such as the user's id) where one is given, and to an end. Values
    that an older key of the ring has signed or sealed are accepted.

    Args:
        keys: Where the keys come from.
        clock: Where the time comes from.
    """

    def __init__(self, keys: KeyRing, *, clock: Clock | None = None) -> None:
        self._keys = keys.derived("cookies")
        self._cipher = FieldCipher(keys, "cookies")
        self._clock = clock or SystemClock()

    def sign(self, name: str, value: str, *, max_age_seconds: float, subject: str = "") -> str:
        """The value, its end, and a MAC over both.

        Raises:
            ConfigurationError: It is larger than a browser keeps.
        """
        return _small(
            f"{(text := self._dated(value, max_age_seconds))}.{self._mac(self._keys[0], name, subject, text)}"
        )

    def verify(self, name: str, cookie: str, *, subject: str = "") -> str | None:
        """What was signed for this cookie and subject; None for anything else, and after its end."""
        text, _, mac = cookie.rpartition(".")
        genuine = mac.isascii() and any(
            hmac.compare_digest(self._mac(key, name, subject, text), mac) for key in self._keys
        )
        return self._undated(text) if genuine else None

    def seal(self, name: str, value: str, *, max_age_seconds: float, subject: str = "") -> str:
        """The value, encrypted.

        Raises:
            ConfigurationError: It is larger than a browser keeps.
        """
        text = self._dated(value, max_age_seconds)
        return _small(self._cipher.seal(text, context=_context(name, subject)))

    def open(self, name: str, cookie: str, *, subject: str = "") -> str | None:
        """What was sealed for this cookie and subject; None for anything else, and after its end."""
        try:
            return self._undated(self._cipher.open(cookie, context=_context(name, subject)))
        except SvcInfraError:
            return None

    def _dated(self, value: str, max_age_seconds: float) -> str:
        until = int(self._clock.now().timestamp() + max_age_seconds)
        return f"{_b64(value.encode())}.{until}"

    def _undated(self, text: str) -> str | None:
        value, _, until = text.rpartition(".")
        return _unb64(value).decode() if int(until) > self._clock.now().timestamp() else None

    def _mac(self, key: bytes, name: str, subject: str, text: str) -> str:
        covered = f"{_context(name, subject)}{text}".encode("utf-8", "surrogatepass")
        return _b64(hmac.digest(key, covered, "sha256"))


class Csrf:
    """Tokens that prove that a request with cookies was sent by a page of this app: signed, and bound to the login.

    The page reads its token from the cookie `__Host-csrf`, which another site cannot, and sends it in `X-CSRF-Token`
    (OWASP CSRF Prevention: signed double submit). Beside that the browser's own word for where the request comes from
    is checked.

    Args:
        keys: Where the key comes from.
        allows: Whether a page of this other origin may send requests with cookies.
    """

    def __init__(self, keys: KeyRing, *, allows: Callable[[str], bool] = lambda _: False) -> None:
        self._keys = keys.derived("csrf")
        self._allows = allows

    def token(self, session_id: UUID) -> str:
        """A new token for this login."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _b64(session_id.bytes + nonce + self._mac(self._keys[0], session_id, nonce))

    def check_origin(self, headers: Headers) -> None:
        """Refuse what a browser says another site has sent.

        Raises:
            ForbiddenError: It does.
        """
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None:
            if origin.partition("://")[2].lower() != host.lower() and not self._allows(origin):
                raise ForbiddenError("A page of another origin may not send this request.")
        elif headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise ForbiddenError("Another site may not send this request.")

    def check(self, headers: Headers, cookie: str, session_id: UUID | None = None) -> None:
        """Refuse a request that no page of this app has sent.

        Args:
            headers: The request's headers.
            cookie: The value of its cookie `__Host-csrf`.
            session_id: The login that its other cookies belong to, where that is known before anything is changed.

        Raises:
            ForbiddenError: Its token is missing, not the cookie's, not ours, or of another login.
        """
        self.check_origin(headers)
        sent = headers.get(CSRF_HEADER, "")
        try:
            raw = _unb64(sent)
        except ValueError:
            raw = b""
        named, nonce, mac = raw[:16], raw[16 : 16 + _NONCE_BYTES], raw[16 + _NONCE_BYTES :]
        good = len(mac) == _MAC_BYTES and hmac.compare_digest(sent.encode(), cookie.encode("utf-8", "replace"))
        if good:
            owner = UUID(bytes=named)
            good = any(hmac.compare_digest(self._mac(key, owner, nonce), mac) for key in self._keys)
            good = good and session_id in (None, owner)
        if not good:
            raise ForbiddenError("Send the value of the cookie __Host-csrf in the header X-CSRF-Token.")

    def _mac(self, key: bytes, session_id: UUID, nonce: bytes) -> bytes:
        return hmac.digest(key, session_id.bytes + nonce, "sha256")


def _context(name: str, subject: str) -> str:
    return json.dumps([name, subject])


def _small(cookie: str) -> str:
    if len(cookie) > MAX_COOKIE_BYTES:
        raise ConfigurationError(f"A cookie has {len(cookie)} bytes; browsers keep {MAX_COOKIE_BYTES}.")
    return cookie


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
