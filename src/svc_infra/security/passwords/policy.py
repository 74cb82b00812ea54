"""Which passwords are acceptable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from svc_infra.errors import ValidationError

MIN_PASSWORD_CHARACTERS = 8
MAX_PASSWORD_CHARACTERS = 128
MAX_PASSWORD_BYTES = 4 * MAX_PASSWORD_CHARACTERS
"""What that many characters can take in UTF-8; nothing longer is ever hashed."""

MIN_WORD_CHARACTERS = 3
"""Shorter words say nothing about where a password is used."""

_NO_LETTERS = re.compile(r"[\W\d_]+")


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """Which passwords are accepted (NIST SP 800-63B-4, 3.1.1.2): a length, and no rules of composition.

    Args:
        min_characters: Shortest password.
        max_characters: Longest password, at most `MAX_PASSWORD_CHARACTERS`.
        refuse_common: Refuse the 5,000 most common passwords of 8 characters and more.
        words: Names that whoever guesses knows, such as the service's: a password may not consist of them alone,
            whatever digits and signs are put between.
    """

    min_characters: int = MIN_PASSWORD_CHARACTERS
    max_characters: int = MAX_PASSWORD_CHARACTERS
    refuse_common: bool = True
    words: Sequence[str] = ()

    def check(self, password: str, *, email: str, pointer: str = "#/password") -> None:
        """Refuse a password that is too short, too long, common, the account's own address, or made of known names.

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
        if self._is_made_of_words(folded):
            raise refused("A password must not be made of the name of this service.", pointer)
        if self.refuse_common and folded in _common():
            raise refused("This password is one of the most common ones: choose another.", pointer)

    def _is_made_of_words(self, folded: str) -> bool:
        letters = _NO_LETTERS.sub("", folded)
        names = [_NO_LETTERS.sub("", word.casefold()) for word in self.words]
        names = [name for name in names if len(name) >= MIN_WORD_CHARACTERS]
        reached = {0}
        for place in range(len(letters)):
            if place in reached:
                reached.update(place + len(name) for name in names if letters.startswith(name, place))
        return letters != "" and len(letters) in reached


def refused(detail: str, pointer: str = "#/password") -> ValidationError:
    """The refusal of a password."""
    return ValidationError(detail, errors=[{"pointer": pointer, "detail": detail}])


@cache
def _common() -> frozenset[str]:
    return frozenset(files(__package__).joinpath("common.txt").read_text(encoding="utf-8").split())
