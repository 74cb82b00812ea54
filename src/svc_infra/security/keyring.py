"""The keys that everything in this room is signed and sealed with."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Self

from pydantic import SecretStr

from svc_infra.config import Secrets


class KeyRing:
    """The secrets of one app, newest first: the newest signs, all of them verify.

    Args:
        newest: What is signed with.
        older: What may still have been signed with.
    """

    def __init__(self, newest: SecretStr, *older: SecretStr) -> None:
        self._secrets = tuple(secret.get_secret_value().encode() for secret in (newest, *older))

    @classmethod
    def read(cls, secrets: Secrets, name: str = "AUTH_SECRET", *, retired: str | None = None) -> Self:
        """The ring of a secret and the one before it, `<name>_PREVIOUS`.

        Args:
            secrets: Where they are looked up.
            name: The newest one.
            retired: A secret that holds still older ones, one in each line.

        Raises:
            MissingSecretError: The newest one is missing outside local and test.
        """
        previous = secrets.get(f"{name}_PREVIOUS")
        lines = secrets.get(retired) if retired is not None else None
        older = [SecretStr(line.strip()) for line in (lines.get_secret_value() if lines else "").splitlines()]
        return cls(secrets.require(name), *([previous] if previous is not None else []), *filter(None, older))

    def derived(self, purpose: str) -> tuple[bytes, ...]:
        """One key for each secret, newest first, that is good for this purpose and tells nothing of any other's."""
        return tuple(hmac.digest(secret, b"svc-infra:" + purpose.encode(), "sha256") for secret in self._secrets)

    def by_id(self, purpose: str) -> dict[str, bytes]:
        """The derived keys under their ids, newest first."""
        return {key_id(key): key for key in self.derived(purpose)}


def key_id(key: bytes) -> str:
    """What names a key without telling anything about it."""
    return sha256(key).hexdigest()[:16]
