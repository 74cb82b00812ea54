"""Which accounts belong to whom: nobody takes an account over by its address, and owners decide."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, text, update

from svc_infra.db import AsyncDatabase
from svc_infra.security.accounts import Accounts
from svc_infra.security.audit import AuditEntry
from svc_infra.security.cipher import FieldCipher
from svc_infra.security.models import User
from svc_infra.security.oauth import OAuthIdentities, OAuthProvider, oidc
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running
from tests.security.oauth.conftest import Browser, agree, app_with, assert_page, browser_of
from tests.security.oauth.impostor import Impostor


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider) -> AsyncIterator[Client]:
    app = app_with(sqlite_db, clock, acme, oidc("other", acme.issuer, keep_tokens=True))
    async with running(app, clock) as client:
        yield client


@pytest.fixture
async def ana(client: Client) -> Client:
    """Ana, with a password and a proven address, logged in."""
    await client.register()
    await client.http.post("/auth/verify", json={"token": client.mailbox.token("verify", "ana@example.com")})
    return await client.log_in()


async def ask(client: Client, provider: str = "acme", **fields: str) -> Any:
    body = {"provider": provider, **fields}
    return await client.http.post("/oauth/identities", json=body, headers=client.bearer)


async def link(client: Client, who: str = "ana", provider: str = "acme") -> Any:
    """Link an identity in the browser that the client is."""
    begun = await ask(client, provider)
    assert begun.status_code == 200, begun.text
    return await Browser(client.http).come_back(await agree(begun.json()["authorization_url"], who))


async def listed(client: Client) -> list[dict[str, Any]]:
    identities: list[dict[str, Any]] = (await client.get("/oauth/identities")).json()
    return identities


async def actions(db: AsyncDatabase) -> list[str]:
    async with db.session(read_only=True) as session:
        names = await session.scalars(select(AuditEntry.action).order_by(AuditEntry.sequence))
        return [name for name in names if name.startswith("oauth.")]


async def test_an_address_that_has_an_account_is_never_taken_over(ana: Client, sqlite_db: AsyncDatabase) -> None:
    async with browser_of(ana.app) as stranger:
        assert_page(await stranger.log_in("ana"), 409, "conflict")
        assert (await stranger.http.get("/auth/me")).status_code == 401
    assert await listed(ana) == []
    assert await actions(sqlite_db) == ["oauth.link_offered", "oauth.refused"]


async def test_an_account_that_came_from_a_provider_has_no_password(client: Client) -> None:
    async with browser_of(client.app) as browser:
        assert (await browser.log_in("ana")).status_code == 303
    for password in ("!oauth!", "unused", "None", "null", PASSWORD):
        answer = await client.http.post("/auth/login", json={"email": "ana@example.com", "password": password})
        assert_problem(answer, 401, "invalid_credentials")


async def test_an_account_that_was_made_for_somebody_elses_address_gets_no_identity_and_keeps_nobody_out(
    client: Client,
) -> None:
    await client.register()  # somebody who cannot read ana's mail
    somebody = await client.log_in()
    assert (await link(somebody, "eve")).status_code == 403
    assert await listed(somebody) == []


async def test_an_owner_who_is_logged_in_links_an_identity_and_logs_in_with_it(
    ana: Client, sqlite_db: AsyncDatabase
) -> None:
    assert (await link(ana, "ana")).status_code == 303
    [identity] = await listed(ana)
    assert (identity["provider"], identity["email"]) == ("acme", "ana@example.com")
    async with browser_of(ana.app) as browser:
        assert (await browser.log_in("ana")).status_code == 303
        me = (await browser.http.get("/auth/me")).json()
    assert me["id"] == (await ana.get("/auth/me")).json()["id"]
    assert await actions(sqlite_db) == ["oauth.linked", "oauth.logged_in"]


async def test_linking_again_changes_nothing(ana: Client) -> None:
    for _ in range(2):
        assert (await link(ana)).status_code == 303
    assert len(await listed(ana)) == 1


async def test_an_identity_belongs_to_one_account(ana: Client, client: Client) -> None:
    async with browser_of(ana.app) as browser:
        assert (await browser.log_in("bo")).status_code == 303
    assert_page(await link(ana, "bo"), 409, "conflict")
    assert await listed(ana) == []


async def test_one_provider_is_not_taken_for_another_that_names_the_same_user(
    ana: Client, sqlite_db: AsyncDatabase
) -> None:
    """Issuer and subject are the same at both."""
    assert (await link(ana, provider="acme")).status_code == 303
    async with browser_of(ana.app) as browser:
        assert_page(await browser.log_in("ana", provider="other"), 409, "conflict")
        assert (await browser.log_in("ana", provider="acme")).status_code == 303
    assert [one["provider"] for one in await listed(ana)] == ["acme"]


async def test_linking_needs_an_address_that_the_provider_has_verified(ana: Client, impostor: Impostor) -> None:
    impostor.claims = {"email_verified": False}
    assert (await link(ana)).status_code == 403
    assert await listed(ana) == []


async def test_only_who_is_logged_in_freshly_begins_to_link_or_unlinks(ana: Client, clock: FakeClock) -> None:
    assert (await ana.http.post("/oauth/identities", json={"provider": "acme"})).status_code == 401
    await link(ana)
    [identity] = await listed(ana)
    clock.advance(899)
    assert (await ask(ana)).status_code == 200
    clock.advance(2)
    ana.tokens = (await ana.refresh()).json()
    assert (await ask(ana)).status_code == 401
    assert (await ana.http.delete(f"/oauth/identities/{identity['id']}", headers=ana.bearer)).status_code == 401
    assert len(await listed(ana)) == 1


async def test_a_login_that_ended_on_the_way_links_nothing(ana: Client) -> None:
    begun = (await ask(ana)).json()["authorization_url"]
    url = await agree(begun, "eve")
    await ana.http.post("/auth/logout-all", headers=ana.bearer)
    assert (await Browser(ana.http).come_back(url)).status_code == 401
    assert await listed(await ana.log_in()) == []


async def test_a_link_that_is_begun_with_cookies_needs_the_csrf_token(ana: Client) -> None:
    login = {"email": "ana@example.com", "password": PASSWORD, "cookies": True}
    token = (await ana.http.post("/auth/login", json=login)).json()["csrf_token"]
    assert (await ana.http.post("/oauth/identities", json={"provider": "acme"})).status_code == 403
    headers = {"X-CSRF-Token": token}
    assert (await ana.http.post("/oauth/identities", json={"provider": "acme"}, headers=headers)).status_code == 200


async def test_the_only_way_in_cannot_be_taken_away(client: Client, sqlite_db: AsyncDatabase) -> None:
    browser = Browser(client.http)
    await browser.log_in("bo")
    [identity] = (await client.http.get("/oauth/identities")).json()
    headers = {"X-CSRF-Token": client.http.cookies["__Host-csrf"]}
    path = f"/oauth/identities/{identity['id']}"
    assert_problem(await client.http.delete(path, headers=headers), 409, "conflict")
    async with sqlite_db.session() as session:
        await session.execute(update(User).values(password_hash="x"))
    assert (await client.http.delete(path, headers=headers)).status_code == 204
    assert (await client.http.get("/oauth/identities")).json() == []
    assert (await actions(sqlite_db))[-1] == "oauth.unlinked"


async def test_nobody_unlinks_what_belongs_to_somebody_else(ana: Client) -> None:
    async with browser_of(ana.app) as bo:
        await bo.log_in("bo")
        [identity] = (await bo.http.get("/oauth/identities")).json()
        answer = await ana.http.delete(f"/oauth/identities/{identity['id']}", headers=ana.bearer)
        assert_problem(answer, 404, "not_found")
        assert len((await bo.http.get("/oauth/identities")).json()) == 1


async def test_a_disabled_account_is_not_logged_in_to(client: Client) -> None:
    async with browser_of(client.app) as browser:
        await browser.log_in("bo")
        user_id = (await browser.http.get("/auth/me")).json()["id"]
    accounts = wiring_of(client.app).get(Accounts)
    async with wiring_of(client.app).get(AsyncDatabase).session() as session:
        user = (await session.scalars(select(User).where(User.email == "bo@example.com"))).one()
        await accounts.disable(session, user.id, reason="test")
    assert str(user.id) == user_id
    async with browser_of(client.app) as browser:
        assert_page(await browser.log_in("bo"), 403, "forbidden")


async def test_a_newcomer_in_many_tabs_at_once_is_one_account(
    postgres_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider
) -> None:
    app = app_with(postgres_db, clock, acme)
    async with running(app, clock), browser_of(app) as browser:
        urls = [await agree(await browser.begin(), "bo") for _ in range(4)]
        answers = await gather(*(browser.come_back(url) for url in urls))
        assert [answer.status_code for answer in answers] == [303] * 4
    async with postgres_db.session(read_only=True) as session:
        assert len((await session.scalars(select(User))).all()) == 1


async def test_tokens_are_kept_where_the_app_asks_for_it_and_nobody_reads_them_in_the_database(ana: Client) -> None:
    await link(ana, provider="acme")
    await link(ana, provider="other")
    wiring = wiring_of(ana.app)
    identities, db = wiring.get(OAuthIdentities), wiring.get(AsyncDatabase)
    async with db.session(read_only=True) as session:
        user = (await session.scalars(select(User))).one()
        by_provider = {one.provider: one.id for one in await identities.list(session, user.id)}
        assert await identities.tokens(session, user.id, by_provider["acme"]) is None
        kept = await identities.tokens(session, user.id, by_provider["other"])
        [stored] = await session.scalars(
            text("SELECT access_token FROM svc_oauth_identities WHERE access_token IS NOT NULL")
        )
    assert kept is not None
    assert kept.refresh_token == f"r-{kept.access_token}"
    assert kept.access_token not in stored
    assert wiring.get(FieldCipher).open(stored, context="oauth_identities.access_token") == kept.access_token
