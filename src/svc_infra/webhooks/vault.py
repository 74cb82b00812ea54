"""Signing secrets at rest: encrypted, because they must be readable again to sign with."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from svc_infra.errors import ConfigurationError


class Vault:
    """Seals and opens short secrets with one key (Fernet: AES-128-CBC and HMAC-SHA256).

    Args:
        key: The secret `WEBHOOKS_KEY`, any text of at least 32 bytes.
    """

    def __init__(self, key: SecretStr) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"svc-infra webhook secrets").derive(
            key.get_secret_value().encode()
        )
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    def seal(self, plain: str) -> str:
        """Encrypt."""
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, sealed: str) -> str:
        """Decrypt.

        Raises:
            ConfigurationError: It was sealed with another key.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise ConfigurationError(
                "A webhook secret was sealed with another WEBHOOKS_KEY: restore that key."
            ) from None
