"""Wires the room into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from svc_infra.errors import ConfigurationError
from svc_infra.jobs import JobQueue
from svc_infra.jobs.add import contribute_tasks
from svc_infra.mail._console import ConsoleSender
from svc_infra.mail._smtp import SmtpSender
from svc_infra.mail.queue import JobMail, send_mail
from svc_infra.mail.sender import Sender
from svc_infra.mail.templates import Templates
from svc_infra.security import MailQueue
from svc_infra.security.add import add_security
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

LOCAL_BASE_URL = "http://localhost:8000"

_PART = "mail"


def add_mail(app: FastAPI, *, sender: Sender | None = None, templates: Path | None = None) -> None:
    """Let an app send mail: accounts do, and so may its own code, with `MailQueue`. A second call changes nothing.

    Args:
        app: An app with a database and jobs (`add_db`, `add_jobs`), in any order; its settings are `MAIL_*`.
        sender: Instead of the server that `MAIL_SMTP_HOST` names; without either, mail is logged in local and test.
        templates: A folder of the app's own templates, which come before the library's.

    Raises:
        ConfigurationError: There is no such folder. At start-up: there are no jobs; there is a server and no
            `MAIL_FROM_ADDRESS`; outside local and test there is no server or no `MAIL_LINK_BASE_URL`.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    if templates is not None and not templates.is_dir():
        raise ConfigurationError(f"There is no folder {templates} with templates.")
    add_security(app)
    contribute_tasks(app, [send_mail])
    wiring.provide(MailQueue, JobMail(wiring))
    wiring.add(Part(_PART, run=lambda: _running(wiring, sender, templates), after=("keys", "jobs")))


@asynccontextmanager
async def _running(wiring: Wiring, sender: Sender | None, folder: Path | None) -> AsyncIterator[None]:
    settings, trusted = wiring.settings.mail, wiring.settings.environment.is_trusted
    if settings.link_base_url is None and not trusted:
        raise ConfigurationError("MAIL_LINK_BASE_URL is not set: where the pages are that links in mails lead to.")
    wiring.get(JobQueue)  # or say what is missing
    base_url = settings.link_base_url or LOCAL_BASE_URL
    wiring.provide(Templates, Templates({"app": wiring.settings.app.name}, base_url=base_url, folder=folder))
    wiring.provide(Sender, sender or _from_settings(wiring))
    yield


def _from_settings(wiring: Wiring) -> Sender:
    settings = wiring.settings.mail
    if settings.smtp_host is None:
        if not wiring.settings.environment.is_trusted:
            raise ConfigurationError("MAIL_SMTP_HOST is not set: mail would only be logged.")
        return ConsoleSender()
    if settings.from_address is None:
        raise ConfigurationError("MAIL_FROM_ADDRESS is not set: who mail is from.")
    return SmtpSender(
        settings.smtp_host,
        port=settings.smtp_port,
        sender=settings.from_address,
        username=settings.smtp_username,
        password=wiring.settings.secrets.get("MAIL_SMTP_PASSWORD"),
        tls=settings.smtp_tls,
        timeout_seconds=settings.timeout_seconds,
    )
