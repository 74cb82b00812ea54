"""Nobody learns which addresses have an account: not by words, nor by a status, nor by the work it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from svc_infra.db import AsyncDatabase
from svc_infra.testing import FakeClock
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service

KNOWN, UNKNOWN = "ana@example.com", "bob@example.com"


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(service(sqlite_db, clock), clock) as client:
        await client.register(KNOWN)
        client.clock.advance(3600)
        yield client


@contextmanager
def statements() -> Any:
    """The kinds of statements and their tables, in order."""
    seen: list[str] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        words = statement.replace("\n", " ").split()
        seen.append(" ".join(words[:3] if words[0] != "SELECT" else ["SELECT", words[words.index("FROM") + 1]]))

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", executed)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("forgot-password", {}),
        ("verify/request", {}),
        ("login", {"password": "wrong password"}),
    ],
)
async def test_a_known_and_an_unknown_address_get_one_answer_for_the_same_work(
    path: str, body: dict[str, str], client: Client
) -> None:
    answers, work = [], []
    await client.http.post("/auth/login", json={"email": "carla@example.com", "password": "wrong password"})
    for email in (KNOWN, UNKNOWN):
        with statements() as seen:
            answer = await client.http.post(f"/auth/{path}", json={"email": email, **body})
        text = answer.json() or {}
        answers.append((answer.status_code, {k: v for k, v in text.items() if k not in ("request_id", "trace_id")}))
        work.append(seen)
    assert answers[0] == answers[1]
    assert work[0] == work[1]


async def test_whoever_registers_an_address_twice_sees_no_difference_and_its_mailbox_does(client: Client) -> None:
    answers, work = [], []
    for email in (KNOWN, UNKNOWN):
        with statements() as seen:
            answer = await client.http.post("/auth/register", json={"email": email, "password": PASSWORD})
        answers.append((answer.status_code, {**answer.json(), "id": len(answer.json()["id"]), "email": ""}))
        work.append([one for one in seen if "SAVEPOINT" not in one and one.split()[0] != "ROLLBACK"])
    assert answers[0] == answers[1]
    assert work[0] == work[1]
    assert client.mailbox.to(KNOWN) == ["verify", "again"]
    assert client.mailbox.to(UNKNOWN) == ["verify"]
    for _ in range(3):
        await client.http.post("/auth/register", json={"email": KNOWN, "password": PASSWORD})
    assert client.mailbox.to(KNOWN) == ["verify", "again"]  # nobody's mailbox is filled


async def test_the_fifth_failure_takes_the_same_work_for_an_address_without_an_account(client: Client) -> None:
    work = []
    for email in (KNOWN, UNKNOWN):  # the network is known from the first four on
        for _ in range(4):
            await client.http.post("/auth/login", json={"email": email, "password": "wrong password"})
        with statements() as seen:
            await client.http.post("/auth/login", json={"email": email, "password": "wrong password"})
        work.append(seen)
        locked = await client.http.post("/auth/login", json={"email": email, "password": PASSWORD})
        assert_problem(locked, 429, "rate_limited")
    assert work[0] == work[1]
    assert client.mailbox.to(KNOWN)[-1] == "unlock"
    assert client.mailbox.to(UNKNOWN) == []


async def test_where_addresses_must_be_proven_an_unproven_one_is_refused_like_an_unknown_one(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = service(sqlite_db, clock, auth={"require_verified": True})
    async with running(app, clock) as client:
        await client.register(KNOWN)
        right = {"email": KNOWN, "password": PASSWORD}
        answers = [
            assert_problem(await client.http.post("/auth/login", json=body), 401, "invalid_credentials")["detail"]
            for body in (right, {**right, "password": "wrong password"}, {**right, "email": UNKNOWN})
        ]
        assert len(set(answers)) == 1
        token = client.mailbox.token("verify", KNOWN)
        await client.http.post("/auth/verify", json={"token": token})
        assert (await client.http.post("/auth/login", json=right)).status_code == 200
