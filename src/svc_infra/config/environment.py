"""Which environment this process runs in."""

from __future__ import annotations

from enum import StrEnum


class Environment(StrEnum):
    """The four environments. `Environment("staging")` knows the aliases too; any other name is a `ValueError`."""

    LOCAL = "local"
    DEV = "dev"
    TEST = "test"
    PROD = "prod"

    @property
    def is_trusted(self) -> bool:
        """Whether development conveniences (default secrets, migrating at start) are allowed here."""
        return self in (Environment.LOCAL, Environment.TEST)

    @classmethod
    def _missing_(cls, value: object) -> Environment | None:
        name = str(value).strip().lower()
        return next((member for member in cls if member.value == _ALIASES.get(name, name)), None)


_ALIASES = {
    "development": "dev",
    "uat": "test",
    "preview": "test",
    "staging": "test",
    "production": "prod",
}
