"""Which passwords are acceptable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from svc_infra.errors import ValidationError

MIN_PASSWORD_CHARACTERS = 8
MAX_PASSWORD_CHARACTERS = 128
MAX_PASSWORD_BYTES = 4 * MAX_PASSWORD_CHARACTERS
"""What that many characters can take in UTF-8; nothing longer is ever hashed."""


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """Which passwords are accepted (NIST SP 800-63B-4, 3.1.1.2): a length, and no rules of composition.

    Args:
        min_characters: Shortest password.
        max_characters: Longest password, at most `MAX_PASSWORD_CHARACTERS`.
        refuse_common: Refuse the 5,000 most common passwords of 8 characters and more.
    """

    min_characters: int = MIN_PASSWORD_CHARACTERS
    max_characters: int = MAX_PASSWORD_CHARACTERS
    refuse_common: bool = True

    def check(self, password: str, *, email: str, pointer: str = "#/password") -> None:
        """Refuse a password that is too short, too long, common, or the account's own address.

        Args:
            password: The password.
            email: The account's address.
            pointer: Where in the request the password is.

        Raises:
            ValidationError: Names what is wrong, never the password.
        """
        if not self.min_characters <= len(password) <= self.max_characters:
            raise refused(f"A password has {self.min_characters} to {self.max_characters} characters.", pointer)
        folded = password.strip().casefold()
        if folded in (email.casefold(), email.partition("@")[0].casefold()):
            raise refused("A password must not be the e-mail address.", pointer)
        if self.refuse_common and folded in _common():
            raise refused("This password is one of the most common ones: choose another.", pointer)


def refused(detail: str, pointer: str = "#/password") -> ValidationError:
    """The refusal of a password."""
    return ValidationError(detail, errors=[{"pointer": pointer, "detail": detail}])


@cache
def _common() -> frozenset[str]:
    return frozenset(files(__package__).joinpath("common.txt").read_text(encoding="utf-8").split())
