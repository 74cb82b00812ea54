"""Which environment this process runs in."""

from __future__ import annotations

from enum import StrEnum


class Environment(StrEnum):
    """The four environments; any other name but their aliases is a `ValueError`.

    `local` is a developer's machine, `test` a test run, `dev` every host that others can reach and that is not `prod`.
    `development`, `staging`, `preview` and `uat` are names of such hosts, so they mean `dev` and never `test`: what a
    test run may do, such as work with secrets that everybody can read in the source, a deployed service may not.
    """

    LOCAL = "local"
    DEV = "dev"
    TEST = "test"
    PROD = "prod"

    @property
    def is_trusted(self) -> bool:
        """Whether default secrets, migrating at start, open metrics and calls to private addresses are allowed here."""
        return self in (Environment.LOCAL, Environment.TEST)

    @classmethod
    def _missing_(cls, value: object) -> Environment | None:
        name = str(value).strip().lower()
        return next((member for member in cls if member.value == _ALIASES.get(name, name)), None)


_ALIASES = {
    "development": "dev",
    "preview": "dev",
    "staging": "dev",
    "uat": "dev",
    "production": "prod",
}
