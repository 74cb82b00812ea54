"""Passwords and addresses: how they are changed, forgotten, proven and taken back; over HTTP, with a mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from svc_infra.db import AsyncDatabase
from svc_infra.security import Accounts
from svc_infra.security.models import AccountLink, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service

ANA = "ana@example.com"
NEW = "another horse battery"


@pytest.fixture
async def client(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(service(db, clock), clock) as client:
        yield client


@pytest.fixture
async def sqlite_client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """For what does not depend on the engine."""
    async with running(service(sqlite_db, clock), clock) as client:
        yield client


async def post(client: Client, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    return await client.http.post(f"/auth/{path}", json=body, headers=headers)


async def user(db: AsyncDatabase, email: str = ANA) -> User:
    async with db.session(read_only=True) as session:
        return (await session.execute(select(User).where(User.email == email))).scalar_one()


async def can_log_in(client: Client, password: str, email: str = ANA) -> bool:
    return (await post(client, "login", email=email, password=password)).status_code == 200


async def test_a_new_address_is_proven_by_the_link_that_it_gets(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    assert not (await user(db)).is_verified
    token = client.mailbox.token("verify", ANA)
    assert (await post(client, "verify", token=token)).status_code == 204
    assert (await user(db)).is_verified
    assert_problem(await post(client, "verify", token=token), 400, "bad_request")
    assert_problem(await post(client, "reset-password", token=token, password=NEW), 400, "bad_request")


async def test_a_link_to_prove_an_address_can_be_asked_for_again(client: Client) -> None:
    await client.register()
    first = client.mailbox.token("verify", ANA)
    assert (await post(client, "verify/request", email=ANA)).status_code == 202
    assert client.mailbox.to(ANA) == ["verify"]  # a moment ago
    client.clock.advance(61)
    await post(client, "verify/request", email=ANA)
    assert client.mailbox.to(ANA) == ["verify", "verify"]
    assert_problem(await post(client, "verify", token=first), 400, "bad_request")
    assert (await post(client, "verify", token=client.mailbox.token("verify", ANA))).status_code == 204
    client.clock.advance(61)
    await post(client, "verify/request", email=ANA)
    assert client.mailbox.to(ANA) == ["verify", "verify"]


async def test_a_forgotten_password_is_replaced_and_every_login_ends(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    ana = await client.log_in()
    assert (await post(client, "forgot-password", email=" ANA@example.com")).status_code == 202
    token = client.mailbox.token("reset", ANA)
    refusal = await post(client, "reset-password", token=token, password="password")
    assert assert_problem(refusal, 422, "validation_error")["errors"][0]["pointer"] == "#/password"
    assert (await post(client, "reset-password", token=token, password=NEW)).status_code == 204
    assert_problem(await ana.get("/auth/me"), 401, "invalid_token")
    assert_problem(await ana.refresh(), 401, "invalid_token")
    assert [await can_log_in(client, one) for one in (PASSWORD, NEW)] == [False, True]
    assert (await user(db)).is_verified  # whoever reads its mail has proven it
    assert client.mailbox.to(ANA) == ["verify", "reset", "password_changed"]
    assert_problem(await post(client, "reset-password", token=token, password=PASSWORD), 400, "bad_request")


async def test_a_link_can_be_used_for_ten_minutes(sqlite_client: Client) -> None:
    await sqlite_client.register()
    await post(sqlite_client, "forgot-password", email=ANA)
    sqlite_client.clock.advance(601)
    token = sqlite_client.mailbox.token("reset", ANA)
    assert_problem(await post(sqlite_client, "reset-password", token=token, password=NEW), 400, "bad_request")


async def test_of_ten_who_use_one_link_at_once_one_succeeds(client: Client) -> None:
    await client.register()
    await post(client, "forgot-password", email=ANA)
    token = client.mailbox.token("reset", ANA)
    passwords = [f"{NEW} {number}" for number in range(10)]
    answers = await asyncio.gather(*(post(client, "reset-password", token=token, password=one) for one in passwords))
    assert sorted(answer.status_code for answer in answers) == [204] + [400] * 9
    winner = passwords[[answer.status_code for answer in answers].index(204)]
    assert await can_log_in(client, winner)


@pytest.mark.parametrize("token", ["", "x", "x" * 129, "\x00", "é" * 43, None, 7], ids=ascii)
async def test_what_is_no_link_is_refused(token: Any, sqlite_client: Client, sqlite_db: AsyncDatabase) -> None:
    await sqlite_client.register()
    paths: list[tuple[str, dict[str, Any]]] = [
        ("verify", {}),
        ("email/confirm", {}),
        ("unlock", {}),
        ("reset-password", {"password": NEW}),
    ]
    for path, more in paths:
        answer = await post(sqlite_client, path, token=token, **more)
        assert answer.status_code in (400, 422), answer.text
    assert not (await user(sqlite_db)).is_verified
    assert await can_log_in(sqlite_client, PASSWORD)


async def test_neither_links_nor_their_tokens_are_stored(sqlite_client: Client, sqlite_db: AsyncDatabase) -> None:
    await sqlite_client.register()
    token = sqlite_client.mailbox.token("verify", ANA)
    assert len(token) >= 43
    async with sqlite_db.session(read_only=True) as session:
        link = (await session.scalars(select(AccountLink))).one()
        assert token not in str(vars(link))


async def test_a_password_is_changed_by_who_knows_it_and_the_other_logins_end(client: Client) -> None:
    await client.register()
    phone, laptop = await client.log_in(), await client.log_in()
    change: dict[str, Any] = {"current_password": PASSWORD, "new_password": NEW}
    assert_problem(await post(client, "password", **change), 401, "unauthorized")
    wrong = await post(client, "password", phone.bearer, **{**change, "current_password": "wrong password"})
    assert_problem(wrong, 401, "invalid_credentials")
    for bad in ("short", "password", ANA, PASSWORD):
        answer = await post(client, "password", phone.bearer, **{**change, "new_password": bad})
        assert assert_problem(answer, 422, "validation_error")["errors"][0]["pointer"] == "#/new_password"
    assert (await post(client, "password", phone.bearer, **change)).status_code == 204
    assert (await phone.get("/auth/me")).status_code == 200
    assert_problem(await laptop.get("/auth/me"), 401, "invalid_token")
    assert [await can_log_in(client, one) for one in (PASSWORD, NEW)] == [False, True]
    assert client.mailbox.to(ANA)[-1] == "password_changed"


async def test_an_address_is_changed_once_the_new_one_is_proven(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    ana = await client.log_in()
    wrong = await post(client, "email", ana.bearer, password="wrong password", new_email="new@example.com")
    assert_problem(wrong, 401, "invalid_credentials")
    odd = await post(client, "email", ana.bearer, password=PASSWORD, new_email="no address")
    assert assert_problem(odd, 422, "validation_error")["errors"][0]["pointer"] == "#/new_email"
    asked = await post(client, "email", ana.bearer, password=PASSWORD, new_email=" New@Example.com ")
    assert asked.status_code == 202
    assert (await ana.get("/auth/me")).json()["email"] == ANA
    token = client.mailbox.token("email", "new@example.com")
    assert (await post(client, "email/confirm", token=token)).status_code == 204
    me = (await ana.get("/auth/me")).json()
    assert (me["email"], me["is_verified"]) == ("new@example.com", True)
    assert client.mailbox.sent[-1] == ("email_changed", ANA, {"email": "new@example.com"})
    assert await can_log_in(client, PASSWORD, "new@example.com")
    assert not await can_log_in(client, PASSWORD)
    assert_problem(await post(client, "verify", token=client.mailbox.token("verify", ANA)), 400, "bad_request")


async def test_an_address_that_has_an_account_cannot_be_taken(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    ana = await client.log_in()
    await client.register("bob@example.com")
    taken = await post(client, "email", ana.bearer, password=PASSWORD, new_email="bob@example.com")
    free = await post(client, "email", ana.bearer, password=PASSWORD, new_email="carla@example.com")
    assert (taken.status_code, taken.content) == (free.status_code, free.content) == (202, b"null")
    assert client.mailbox.to("bob@example.com") == ["verify"]
    token = client.mailbox.token("email", "carla@example.com")
    await client.register("carla@example.com")  # meanwhile
    assert_problem(await post(client, "email/confirm", token=token), 409, "conflict")
    assert (await user(db)).email == ANA


async def test_an_account_is_given_up_and_comes_back_only_by_an_administrator(
    client: Client, db: AsyncDatabase
) -> None:
    user_id = await client.register()
    ana = await client.log_in()
    assert_problem(await post(client, "disable", ana.bearer, password="wrong password"), 401, "invalid_credentials")
    assert (await post(client, "disable", ana.bearer, password=PASSWORD, reason="a break")).status_code == 204
    assert_problem(await ana.get("/auth/me"), 401, "invalid_token")
    assert not await can_log_in(client, PASSWORD)
    await post(client, "forgot-password", email=ANA)
    assert client.mailbox.to(ANA) == ["verify"]
    assert_problem(await post(client, "verify", token=client.mailbox.token("verify", ANA)), 400, "bad_request")
    assert (await user(db)).disabled_reason == "a break"
    async with db.session() as session:
        await wiring_of(client.app).get(Accounts).enable(session, user_id)
    assert await can_log_in(client, PASSWORD)


async def test_an_account_is_deleted_with_all_that_belongs_to_it(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    ana = await client.log_in()
    wrong = await client.http.request("DELETE", "/auth/me", json={"password": "wrong"}, headers=ana.bearer)
    assert_problem(wrong, 401, "invalid_credentials")
    gone = await client.http.request("DELETE", "/auth/me", json={"password": PASSWORD}, headers=ana.bearer)
    assert gone.status_code == 204
    assert_problem(await ana.get("/auth/me"), 401, "invalid_token")
    async with db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(User)) == 0
    assert await client.register()


async def test_the_owner_changes_the_profile_and_nothing_else(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    ana = await client.log_in()
    changed = await client.http.patch("/auth/me", json={"full_name": "Ana"}, headers=ana.bearer)
    assert changed.json()["full_name"] == "Ana"
    assert (await client.http.patch("/auth/me", json={}, headers=ana.bearer)).json()["full_name"] == "Ana"
    for body in ({"roles": ["admin"]}, {"email": "x@example.com"}, {"is_verified": True}, {"full_name": ""}, {"id": 1}):
        answer = await client.http.patch("/auth/me", json=body, headers=ana.bearer)
        assert_problem(answer, 422, "validation_error")
    stored = await user(db)
    assert (stored.full_name, stored.roles, stored.is_verified) == ("Ana", [], False)
    assert (await client.http.patch("/auth/me", json={"full_name": None}, headers=ana.bearer)).status_code == 200


async def test_the_owner_sees_and_ends_logins_and_nobody_elses(client: Client) -> None:
    await client.register()
    await client.register("bob@example.com")
    bob = await client.log_in("bob@example.com")
    phone = await client.log_in()
    client.clock.advance(60)
    laptop = await client.log_in()
    await client.log_in()
    listed = (await laptop.get("/auth/sessions")).json()
    assert len(listed) == 3
    assert [one["current"] for one in listed] == [False, True, False]
    assert listed[0]["user_agent"].startswith("python-httpx2")
    bobs = (await bob.get("/auth/sessions")).json()[0]["id"]
    unknown = await client.http.delete(f"/auth/sessions/{bobs}", headers=laptop.bearer)
    assert_problem(unknown, 404, "not_found")
    assert (await bob.get("/auth/me")).status_code == 200
    gone = await client.http.delete(f"/auth/sessions/{listed[2]['id']}", headers=laptop.bearer)
    assert gone.status_code == 204
    assert_problem(await phone.get("/auth/me"), 401, "invalid_token")
    again = await client.http.delete(f"/auth/sessions/{listed[2]['id']}", headers=laptop.bearer)
    assert_problem(again, 404, "not_found")
    assert (await client.http.post("/auth/sessions/revoke-others", headers=laptop.bearer)).status_code == 204
    assert [one["current"] for one in (await laptop.get("/auth/sessions")).json()] == [True]
    assert (await client.http.post("/auth/logout-all", headers=laptop.bearer)).status_code == 204
    assert_problem(await laptop.get("/auth/sessions"), 401, "invalid_token")
