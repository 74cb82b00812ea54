"""The port through which mail leaves."""

from __future__ import annotations

from typing import Protocol

from svc_infra.mail.message import Message


class Sender(Protocol):
    """Sends mail."""

    async def send(self, message: Message) -> None:
        """Hand a mail to whoever delivers it.

        Raises:
            ValidationError: It will never be taken: its address or content was refused for good.
            UnavailableError: It was not taken this time.
        """
        ...
