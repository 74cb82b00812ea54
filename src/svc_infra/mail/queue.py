"""Mail as jobs: stored in the caller's transaction, sent after its commit, tried again while the server is away."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ValidationError
from svc_infra.jobs import JobContext, JobQueue, task
from svc_infra.mail.sender import Sender
from svc_infra.mail.templates import Templates
from svc_infra.security.cipher import FieldCipher
from svc_infra.types import new_id
from svc_infra.wiring import Wiring

MAX_ATTEMPTS = 12
RETRY_SECONDS = 10.0
"""Until the second attempt; doubled with each one."""
RETRY_LIMIT_SECONDS = 3600.0
NOBODY = "nobody@example.com"
"""Whom a mail is written to that is sent to nobody."""


class JobMail:
    """The `MailQueue` of an app with jobs. What a mail says is sealed in its job, because links open accounts.

    Args:
        wiring: The app's wiring, which has the queue, the cipher and the templates once it runs.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring

    async def send(self, session: AsyncSession, template: str, to: str, values: Mapping[str, str]) -> None:
        """Store the job that sends a mail in this unit of work.

        Args:
            session: The unit of work.
            template: Which mail.
            to: The address; an empty one makes a job that sends nothing.
            values: What the template says; a `link` that begins with `/` becomes absolute.

        Raises:
            ConfigurationError: The template cannot be written with these values.
            ValidationError: The address is not acceptable.
        """
        name, message_id = str(template), new_id().hex
        self._wiring.get(Templates).render(name, to or NOBODY, values)  # what is wrong is told here, not by a job
        written = json.dumps({"template": name, "to": to, "values": dict(values)})
        sealed = self._wiring.get(FieldCipher).seal(written, context=_context(message_id))
        call = send_mail.options(session=session, on=self._wiring.get(JobQueue))
        await call.enqueue(sealed=sealed, message_id=message_id)


def _again(error: BaseException, attempt: int) -> float | None:
    """A refusal for good is not tried again; it goes to the dead letter."""
    if isinstance(error, ValidationError):
        return None
    return float(min(RETRY_SECONDS * 2.0 ** (attempt - 1), RETRY_LIMIT_SECONDS))


@task(name="mail.send", max_attempts=MAX_ATTEMPTS, retry=_again)
async def send_mail(sealed: str, message_id: str, context: JobContext) -> None:
    """Send one mail; a second attempt carries the same `Message-ID`."""
    written = json.loads(context.get(FieldCipher).open(sealed, context=_context(message_id)))
    if not written["to"]:
        return
    templates = context.get(Templates)
    message = templates.render(written["template"], written["to"], written["values"], message_id=message_id)
    await context.get(Sender).send(message)


def _context(message_id: str) -> str:
    return f"mail:{message_id}"
