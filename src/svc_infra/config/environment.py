"""Which environment this process runs in."""

from __future__ import annotations

from enum import StrEnum

from svc_infra.errors import ConfigurationError


class Environment(StrEnum):
    """The four environments; every alias maps to one of them, anything else is an error."""

    LOCAL = "local"
    DEV = "dev"
    TEST = "test"
    PROD = "prod"

    @property
    def is_trusted(self) -> bool:
        """Whether development conveniences (default secrets, migrating at start) are allowed here."""
        return self in (Environment.LOCAL, Environment.TEST)

    @classmethod
    def parse(cls, value: str) -> Environment:
        """The environment that a name or alias means.

        Raises:
            ConfigurationError: The name is unknown.
        """
        name = value.strip().lower()
        try:
            return cls(_ALIASES.get(name, name))
        except ValueError:
            known = ", ".join([*cls, *_ALIASES])
            raise ConfigurationError(f"APP_ENV is {value!r}, which is no environment: use one of {known}.") from None


_ALIASES = {
    "development": "dev",
    "uat": "test",
    "preview": "test",
    "staging": "test",
    "production": "prod",
}
