"""Mail through a server (SMTP, RFC 5321)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SecretStr

from svc_infra._optional import need
from svc_infra.errors import UnavailableError, ValidationError
from svc_infra.mail.message import Message

PERMANENT = 500
"""Replies from here on say that trying again is of no use (RFC 5321, 4.2.1)."""


class SmtpSender:
    """Sends each mail over a connection of its own.

    Args:
        host, port: The server.
        sender: Who mail is from.
        username, password: For servers that ask for them.
        tls: `starttls` and `tls` check the server's certificate; `none` is for servers on this machine.
        timeout_seconds: Longest wait for each answer.

    Raises:
        MissingExtraError: aiosmtplib is not installed.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int = 587,
        sender: str,
        username: str | None = None,
        password: SecretStr | None = None,
        tls: Literal["starttls", "tls", "none"] = "starttls",
        timeout_seconds: float = 10.0,
    ) -> None:
        self._smtp: Any = need("aiosmtplib")
        self._sender = sender
        self._options = {
            "hostname": host,
            "port": port,
            "username": username,
            "password": password.get_secret_value() if password is not None else None,
            "use_tls": tls == "tls",
            "start_tls": tls == "starttls",
            "timeout": timeout_seconds,
        }

    async def send(self, message: Message) -> None:
        """Hand it to the server.

        Raises:
            ValidationError: The server refuses the address or the content for good.
            UnavailableError: The server cannot be reached, or does not take it this time.
        """
        smtp = self._smtp
        try:
            await smtp.send(message.as_email(self._sender), **self._options)
        except smtp.SMTPRecipientsRefused as error:
            self._give_up_if(all(one.code >= PERMANENT for one in error.recipients), "address", error)
        except smtp.SMTPDataError as error:
            self._give_up_if(error.code >= PERMANENT, "content", error)
        except (smtp.SMTPException, OSError) as error:
            raise UnavailableError(f"The mail server does not take mail: {type(error).__name__}.") from error

    def _give_up_if(self, permanent: bool, what: str, error: Exception) -> None:
        if permanent:
            raise ValidationError(f"The mail server refuses the {what} of a mail.") from error
        raise UnavailableError(f"The mail server does not take the {what} of a mail this time.") from error
