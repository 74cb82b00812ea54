"""Mail of an app: stored in a transaction, sent by a job."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError, UnavailableError, ValidationError
from svc_infra.jobs import Job, JobState, JobStore
from svc_infra.mail import Message, add_mail
from svc_infra.security import MailQueue
from svc_infra.security.add import add_auth_users
from svc_infra.wiring import wiring_of
from tests.mail.conftest import Outbox, SmtpServer, app_with_mail, over_smtp

ANA = {"email": "ana@example.com", "password": "correct horse battery"}
SECRET = "a test secret of more than 32 bytes, no less"


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="https://test")


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_who_registers_gets_a_mail_with_a_link_that_works(
    engine: str, request: pytest.FixtureRequest, smtp: SmtpServer
) -> None:
    app = app_with_mail(request.getfixturevalue(f"migrated_{engine}_url"), accounts=True, **over_smtp(smtp))
    async with app.router.lifespan_context(app), client_of(app) as http:
        assert (await http.post("/auth/register", json=ANA)).status_code == 201
        [mail] = await smtp.wait_for(1)
        assert (mail["To"], mail["Subject"]) == (ANA["email"], "Confirm your address for Shop")
        body = mail.get_body(("plain",))
        assert body is not None
        [link] = [line for line in body.get_content().splitlines() if line.startswith("https://")]
        page, _, token = link.partition("#")
        assert page == "https://shop.example/verify-email"
        assert (await http.post("/auth/verify", json={"token": token})).status_code == 204


async def test_what_a_mail_says_is_sealed_in_its_job(sqlite_url: str) -> None:
    app = app_with_mail(sqlite_url, sender=Outbox())
    async with app.router.lifespan_context(app):
        wiring = wiring_of(app)
        async with wiring.get(AsyncDatabase).session() as session:
            await wiring.get(MailQueue).send(session, "reset", ANA["email"], {"link": "/reset-password#the-token"})
            row = json.dumps([list(map(str, job)) for job in await session.execute(text("SELECT * FROM svc_jobs"))])
            assert "mail.send" in row
            assert "the-token" not in row
            assert ANA["email"] not in row


async def test_a_mail_goes_with_the_rollback_of_its_transaction_and_one_to_nobody_is_not_sent(sqlite_url: str) -> None:
    outbox = Outbox()
    app = app_with_mail(sqlite_url, sender=outbox)
    async with app.router.lifespan_context(app):
        wiring = wiring_of(app)
        db, queue = wiring.get(AsyncDatabase), wiring.get(MailQueue)
        with pytest.raises(KeyError):
            async with db.session() as session:
                await queue.send(session, "reset", "never@example.com", {"link": "/x"})
                raise KeyError
        async with db.session() as session:
            await queue.send(session, "reset", "", {"link": "/x"})
        async with db.session() as session:
            await queue.send(session, "reset", ANA["email"], {"link": "/x"})
        async with asyncio.timeout(20):
            await outbox.news.wait()
            while await wiring.get(JobStore).list(state=JobState.READY):
                await asyncio.sleep(0.01)
    assert [message.to for message in outbox.sent] == [ANA["email"]]


async def test_a_mail_that_cannot_be_written_is_refused_where_it_is_asked_for(sqlite_url: str) -> None:
    app = app_with_mail(sqlite_url, sender=Outbox())
    async with app.router.lifespan_context(app):
        wiring = wiring_of(app)
        queue = wiring.get(MailQueue)
        async with wiring.get(AsyncDatabase).session() as session:
            with pytest.raises(ConfigurationError):
                await queue.send(session, "nothing", ANA["email"], {})
            with pytest.raises(ConfigurationError):
                await queue.send(session, "reset", ANA["email"], {})
            with pytest.raises(ValidationError):
                await queue.send(session, "reset", "ana@example.com\nBcc: eve@example.com", {"link": "/x"})


@pytest.mark.parametrize(
    ("errors", "state", "attempts"),
    [
        ([UnavailableError(), UnavailableError()], JobState.SUCCEEDED, 3),
        ([ValidationError()], JobState.DEAD, 1),
    ],
)
async def test_a_server_that_is_away_is_tried_again_and_a_refusal_is_not(
    errors: list[Exception], state: JobState, attempts: int, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.mail.queue.RETRY_SECONDS", 0.01)
    ids: list[str] = []

    class Failing:
        async def send(self, message: Message) -> None:
            ids.append(message.id)
            if errors:
                raise errors.pop(0)

    app = app_with_mail(sqlite_url, sender=Failing())
    async with app.router.lifespan_context(app):
        wiring = wiring_of(app)
        async with wiring.get(AsyncDatabase).session() as session:
            await wiring.get(MailQueue).send(session, "reset", ANA["email"], {"link": "/x"})
        found: list[Job] = []
        async with asyncio.timeout(20):
            while not found:
                await asyncio.sleep(0.01)
                found = [one for one in await wiring.get(JobStore).list(state=state) if one.name == "mail.send"]
    assert found[0].attempts == attempts
    assert len(ids) == attempts
    assert len(set(ids)) == 1


async def test_without_a_server_mail_is_logged_in_local_and_test(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with_mail(sqlite_url, accounts=True)
    with caplog.at_level(logging.INFO, logger="svc_infra.mail"):
        async with app.router.lifespan_context(app), client_of(app) as http:
            await http.post("/auth/register", json=ANA)
            async with asyncio.timeout(20):
                while not (found := [one for one in caplog.records if one.message == "mail.not_sent"]):
                    await asyncio.sleep(0.01)
    assert "http://localhost:8000/verify-email#" in found[0].text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("mail", "missing"),
    [
        ({}, "MAIL_LINK_BASE_URL"),
        ({"link_base_url": "https://shop.example"}, "MAIL_SMTP_HOST"),
        ({"link_base_url": "https://shop.example", "smtp_host": "mail.example"}, "MAIL_FROM_ADDRESS"),
    ],
)
async def test_production_does_not_start_without_what_mail_needs(
    mail: dict[str, Any], missing: str, sqlite_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", SECRET)
    app = app_with_mail(str(sqlite_db.url), env="prod", **mail)
    with pytest.raises(ConfigurationError, match=missing):
        async with app.router.lifespan_context(app):
            pass


async def test_accounts_do_not_start_in_production_without_mail(
    sqlite_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", SECRET)
    app = create_app(settings=Settings(app={"env": "prod"}))
    add_db(app, database=sqlite_db)
    add_auth_users(app)
    with pytest.raises(ConfigurationError, match="add_mail"):
        async with app.router.lifespan_context(app):
            pass


async def test_an_app_without_jobs_does_not_start(sqlite_url: str) -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_mail(app)
    add_db(app, url=sqlite_url)
    with pytest.raises(ConfigurationError, match="add_jobs"):
        async with app.router.lifespan_context(app):
            pass


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="templates"):
        add_mail(create_app(settings=Settings()), templates=tmp_path / "nowhere")
