"""Addresses."""

from __future__ import annotations

import unicodedata

from email_validator import EmailNotValidError, validate_email

from svc_infra.errors import ValidationError

MAX_EMAIL_CHARACTERS = 254
"""The longest address that mail can be sent to (RFC 3696, erratum 1690)."""


def normalized_email(value: str, *, pointer: str = "#/email") -> str:
    """The one form in which an address is stored and compared.

    Trimmed, compatibility characters replaced (NFKC), lower case, the domain in Unicode (UTS 46): however someone types
    the address, it names one account, and two addresses that look alike for those reasons cannot name two.

    Args:
        value: The address as it was written.
        pointer: Where in the request it was.

    Raises:
        ValidationError: It is not an address that mail can be sent to.
    """
    text = unicodedata.normalize("NFKC", value.strip()) if len(value) <= 2 * MAX_EMAIL_CHARACTERS else value
    try:
        address = validate_email(text.lower(), check_deliverability=False).normalized.lower()
    except (EmailNotValidError, UnicodeError):
        address = ""
    if not 0 < len(address.encode()) <= MAX_EMAIL_CHARACTERS:
        detail = "This is not an e-mail address."
        raise ValidationError(detail, errors=[{"pointer": pointer, "detail": detail}])
    return address
