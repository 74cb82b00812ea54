"""An app that sends mail, and servers that take it or do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope
from fastapi import FastAPI

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.jobs.add import add_jobs
from svc_infra.mail import Message, add_mail
from svc_infra.security.add import add_auth_users


class SmtpServer:
    """A server on a socket of this event loop that keeps what it takes.

    Args:
        rcpt, data: What it says to an address and to a mail, in turn; then it takes everything.
    """

    def __init__(self, *, rcpt: tuple[str, ...] = (), data: tuple[str, ...] = ()) -> None:
        self.taken: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.port = 0
        self._rcpt, self._data = list(rcpt), list(data)
        self._news = asyncio.Condition()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self._rcpt.pop(0) if self._rcpt else "250 OK"
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        answer = self._data.pop(0) if self._data else "250 OK"
        if answer.startswith("250"):
            async with self._news:
                content = envelope.content
                assert isinstance(content, bytes)
                self.taken.append(message_from_bytes(content, policy=policy.default))
                self.envelopes.append(envelope)
                self._news.notify_all()
        return answer

    async def wait_for(self, count: int) -> list[EmailMessage]:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(self.taken) >= count)
        return self.taken


@asynccontextmanager
async def serving(server: SmtpServer) -> AsyncIterator[SmtpServer]:
    loop = asyncio.get_running_loop()
    connections: list[SMTP] = []

    def connected() -> SMTP:
        connections.append(SMTP(server, enable_SMTPUTF8=True, loop=loop))
        return connections[-1]

    listening = await loop.create_server(connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await listening.wait_closed()
        for one in connections:
            if one.transport is not None:
                one.transport.close()
        await asyncio.sleep(0)  # until the sockets are closed


@pytest.fixture
async def smtp() -> AsyncIterator[SmtpServer]:
    async with serving(SmtpServer()) as server:
        yield server


class Outbox:
    """A `Sender` that keeps mail."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.news = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.news.set()


def app_with_mail(url: str, *, accounts: bool = False, env: str = "test", sender: Any = None, **mail: Any) -> FastAPI:
    """An app with jobs and mail, not yet started."""
    settings = Settings(
        app={"env": env, "name": "Shop"},
        auth={"hash_memory_kib": 64, "hash_passes": 1},
        jobs={"poll_interval_seconds": 0.02},
        mail=mail,
    )
    app = create_app(settings=settings)
    add_mail(app, sender=sender)
    add_jobs(app)
    add_db(app, url=url)
    if accounts:
        add_auth_users(app)
    return app


def over_smtp(server: SmtpServer) -> dict[str, Any]:
    return {
        "smtp_host": "127.0.0.1",
        "smtp_port": server.port,
        "smtp_tls": "none",
        "from_address": "Shop <no-reply@shop.example>",
        "link_base_url": "https://shop.example/",
    }
