"""Mail that goes no further than the log."""

from __future__ import annotations

import logging

from svc_infra.mail.message import Message

_log = logging.getLogger(__name__)


class ConsoleSender:
    """Writes mail to the log, links included: for local and test."""

    async def send(self, message: Message) -> None:
        """Log it."""
        _log.info("mail.not_sent", extra={"to": message.to, "subject": message.subject, "text": message.text})
