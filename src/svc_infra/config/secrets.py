"""Secrets: looked up by name, never printed, never defaulted outside local and test."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from svc_infra.config.environment import Environment
from svc_infra.errors import MissingSecretError


class Secrets:
    """Reads secrets from `NAME`, from the file that `NAME_FILE` names, or from `/run/secrets/name`, in that order.

    Args:
        environment: Outside local and test a missing secret is an error.
        directory: Where mounted secrets lie; `/run/secrets` by default.
    """

    def __init__(self, environment: Environment, *, directory: Path = Path("/run/secrets")) -> None:
        self._environment = environment
        self._directory = directory

    def get(self, name: str) -> SecretStr | None:
        """The secret, or None when it is set nowhere."""
        if value := os.environ.get(name):
            return SecretStr(value)
        file = Path(os.environ[f"{name}_FILE"]) if f"{name}_FILE" in os.environ else self._directory / name.lower()
        return SecretStr(file.read_text().strip()) if file.is_file() else None

    def require(self, name: str) -> SecretStr:
        """The secret; in local and test a fixed development value stands in for a missing one.

        Raises:
            MissingSecretError: It is set nowhere, and this is neither local nor test.
        """
        value = self.get(name)
        if value is not None:
            return value
        if self._environment.is_trusted:
            return SecretStr(f"only-for-{self._environment}-{name}".lower().ljust(32, "."))
        raise MissingSecretError(f"{name} is not set: set {name}, {name}_FILE or {self._directory / name.lower()}.")

    def __repr__(self) -> str:
        return f"Secrets(environment={self._environment.value!r})"
