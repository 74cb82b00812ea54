"""What accounts say by mail, and the port through which they say it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import after_commit

_log = logging.getLogger(__name__)


class MailQueue(Protocol):
    """Sends mail later; `svc_infra.mail.add_mail` provides one."""

    async def send(self, session: AsyncSession, template: str, to: str, values: Mapping[str, str]) -> None:
        """Have a mail sent once this unit of work is committed.

        Args:
            session: The unit of work.
            template: Which mail.
            to: The address; an empty one costs the same and sends nothing, so that nobody can tell the difference.
            values: What the template says; `link` begins with `/` and becomes absolute.
        """
        ...


class LoggedMail:
    """Writes to the log what would be mailed, links included: for local and test only."""

    async def send(self, session: AsyncSession, template: str, to: str, values: Mapping[str, str]) -> None:
        """Log it after the commit."""
        if to:
            fields = {"template": template, "to": to, **values}
            after_commit(session, lambda: _log.info("auth.mail_not_sent", extra=fields))
