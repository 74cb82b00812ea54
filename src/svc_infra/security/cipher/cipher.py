"""Secrets at rest that must be readable again: sealed with AES-256-GCM, under a ring of keys."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Text, TypeDecorator
from sqlalchemy.engine import Dialect

from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.security.keyring import KeyRing
from svc_infra.wiring import current_wiring

NONCE_BYTES = 12
"""Drawn at random: one key may seal about four thousand million values (NIST SP 800-38D, 8.3)."""


class FieldCipher:
    """Seals and opens short texts. The newest key seals; what an older one sealed can be opened, and sealed anew.

    Args:
        keys: Where the keys come from.
        purpose: What they are for; a cipher of another purpose has other keys.
    """

    def __init__(self, keys: KeyRing, purpose: str = "fields") -> None:
        self._ciphers = {name: AESGCM(key) for name, key in keys.by_id(f"cipher:{purpose}").items()}
        self._newest = next(iter(self._ciphers))

    def seal(self, plain: str, *, context: str = "") -> str:
        """Encrypt.

        Args:
            plain: The text.
            context: Where it belongs, such as `users.totp:42`; it opens only there, so sealed values cannot be swapped.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self._newest].encrypt(nonce, plain.encode(), context.encode())
        return f"{self._newest}.{urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *, context: str = "") -> str:
        """Decrypt.

        Raises:
            ConfigurationError: It was sealed with a key that is not here.
            SvcInfraError: It was changed, or belongs elsewhere.
        """
        name, _, text = sealed.partition(".")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise ConfigurationError("A sealed value needs a secret that is not here: restore it as `<name>_PREVIOUS`.")
        try:
            raw = urlsafe_b64decode(text)
            return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context.encode()).decode()
        except (InvalidTag, ValueError):
            raise SvcInfraError("A sealed value was changed, or belongs elsewhere.") from None

    def resealed(self, sealed: str, *, context: str = "") -> str:
        """The same, sealed with the newest key; unchanged when it is already.

        Raises:
            SvcInfraError: As for `open`.
        """
        if sealed.partition(".")[0] == self._newest:
            return sealed
        return self.seal(self.open(sealed, context=context), context=context)


class EncryptedField(TypeDecorator[str]):
    """A text column that is sealed in the database and plain in Python: `mapped_column(EncryptedField("users.totp"))`.

    Works in the requests, jobs and scripts of an app with `add_security` or `add_auth_users`, with its cipher. Such a
    column can neither be searched nor compared.

    Args:
        context: Table and column; a value that is copied to another column does not open there.
    """

    impl = Text
    cache_ok = True

    def __init__(self, context: str) -> None:
        super().__init__()
        self.context = context

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Seal."""
        return None if value is None else _cipher().seal(value, context=self.context)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:
        """Open."""
        return None if value is None else _cipher().open(value, context=self.context)


def _cipher() -> FieldCipher:
    wiring = current_wiring()
    if wiring is None:
        raise ConfigurationError("An encrypted column was used outside of any app: use `with wiring.active()`.")
    return wiring.get(FieldCipher)
