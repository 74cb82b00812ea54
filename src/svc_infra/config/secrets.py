"""Secrets: looked up by name, never printed, never defaulted outside local and test."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from svc_infra.config.environment import Environment
from svc_infra.config.variables import Variables, read_text
from svc_infra.errors import ConfigurationError, MissingSecretError

MIN_BYTES = 32  # what HMAC-SHA-256 and AES-256 keys need (RFC 7518, section 3.2)


class Secrets:
    """Reads secrets from `NAME` (environment or `.env`), from the file that `NAME_FILE` names, or from
    `/run/secrets/name`, in that order; a blank value counts as missing.

    Args:
        environment: Outside local and test a missing secret is an error.
        variables: What the environment says; read now when left out.
        directory: Where mounted secrets lie; `/run/secrets` by default.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        variables: Variables | None = None,
        directory: Path = Path("/run/secrets"),
    ) -> None:
        self._environment = environment
        self._variables = variables if variables is not None else Variables.read()
        self._directory = directory

    def get(self, name: str) -> SecretStr | None:
        """The secret, or None when it is set nowhere.

        Raises:
            ConfigurationError: Its file cannot be read.
        """
        value, _ = self._find(name)
        return SecretStr(value) if value else None

    def require(self, name: str, *, min_bytes: int = MIN_BYTES) -> SecretStr:
        """The secret; in local and test a fixed development value stands in for a missing one.

        Args:
            name: The variable, such as `AUTH_SECRET`.
            min_bytes: A shorter secret is refused outside local and test.

        Raises:
            MissingSecretError: It is set nowhere, and this is neither local nor test.
            ConfigurationError: It is too short, or its file cannot be read.
        """
        value, source = self._find(name)
        if not value and self._environment.is_trusted:
            return SecretStr(f"only-for-{self._environment}-{name}".lower().ljust(max(min_bytes, MIN_BYTES), "."))
        if not value:
            raise MissingSecretError(f"{name} is not set: set {name}, {name}_FILE or {self._file(name)}.")
        if len(value.encode()) < min_bytes and not self._environment.is_trusted:
            raise ConfigurationError(
                f"{name} (from {source}) is shorter than {min_bytes} bytes: make one with `openssl rand -base64 48`."
            )
        return SecretStr(value)

    def source(self, name: str) -> str | None:
        """Where the secret comes from, or None when it is set nowhere.

        Raises:
            ConfigurationError: Its file cannot be read.
        """
        value, source = self._find(name)
        return source if value else None

    def __repr__(self) -> str:
        return f"Secrets(environment={self._environment.value!r})"

    def _find(self, name: str) -> tuple[str, str]:
        if value := self._variables.get(name):
            return value, str(self._variables.source(name))
        if named := self._variables.get(f"{name}_FILE"):
            return read_text(Path(named), named_by=f"{name}_FILE").strip(), named
        file = self._file(name)
        return (read_text(file).strip() if _exists(file) else ""), str(file)

    def _file(self, name: str) -> Path:
        return self._directory / name.lower()


def _exists(file: Path) -> bool:
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True  # reading it then says so
    return True
