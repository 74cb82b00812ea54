"""A mail."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate

from email_validator import EmailNotValidError, validate_email

from svc_infra.errors import ValidationError

MAX_HEADER_CHARACTERS = 500
MAX_BODY_CHARACTERS = 1024 * 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A mail to one address.

    Attributes:
        to: The address.
        subject: One line.
        text: The body as plain text.
        html: The same as HTML; None for none.
        id: Names it for whoever receives it twice; it stands in `Message-ID`.

    Raises:
        ValidationError: The address is none, or the subject or the id would begin another header.
    """

    to: str
    subject: str
    text: str = field(repr=False)
    html: str | None = field(default=None, repr=False)
    id: str = ""

    def __post_init__(self) -> None:
        for name, value in (("address", self.to), ("subject", self.subject), ("id", self.id)):
            if len(value) > MAX_HEADER_CHARACTERS or _CONTROL.search(value):
                raise ValidationError(f"The {name} of a mail is one line of up to {MAX_HEADER_CHARACTERS} characters.")
        if not is_address(self.to):
            raise ValidationError("A mail needs one address to go to.")
        if max(len(self.text), len(self.html or "")) > MAX_BODY_CHARACTERS:
            raise ValidationError(f"The body of a mail has up to {MAX_BODY_CHARACTERS} characters.")

    def as_email(self, sender: str) -> EmailMessage:
        """As it is sent.

        Args:
            sender: Who it is from.
        """
        mail = EmailMessage(policy=SMTP.clone(utf8=not self.to.isascii()))
        mail["From"], mail["To"], mail["Subject"] = sender, self.to, self.subject
        mail["Date"] = formatdate()
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: so that no machine answers it
        if self.id:
            mail["Message-ID"] = f"<{self.id}@{sender.rpartition('@')[2].rstrip('>')}>"
        mail.set_content(self.text)
        if self.html is not None:
            mail.add_alternative(self.html, subtype="html")
        return mail


def is_address(text: str) -> bool:
    """Whether mail can be sent to this."""
    try:
        validate_email(text, check_deliverability=False, test_environment=True)
    except (EmailNotValidError, UnicodeError):
        return False
    return True
