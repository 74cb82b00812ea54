"""Linking by mail: by who has the browser that proved the identity and the mailbox of the account, both, once."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.access.http import routes_without_policy
from svc_infra.security.accounts import Accounts
from svc_infra.security.audit import AuditEntry
from svc_infra.security.models import User
from svc_infra.security.oauth import OAuthProvider, oidc
from svc_infra.security.oauth.models import OAuthIdentity
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running
from tests.security.oauth.conftest import Browser, app_with, assert_page, browser_of
from tests.security.oauth.impostor import Impostor

ANA, TAKE = "ana@example.com", "/oauth/identities/offered"


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider) -> AsyncIterator[Client]:
    """Ana has an account with a password and a proven address."""
    app = app_with(sqlite_db, clock, acme, oidc("other", acme.issuer))
    async with running(app, clock) as client:
        await client.register()
        await client.http.post("/auth/verify", json={"token": client.mailbox.token("verify", ANA)})
        yield client


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[Browser]:
    async with browser_of(client.app) as browser:
        yield browser


async def offered(client: Client, browser: Browser, **params: str) -> str:
    """The token of the link that is mailed when Ana comes with a provider for the first time."""
    assert_page(await browser.log_in(**params), 409, "conflict")
    return client.mailbox.token("oauth_offer", ANA)


async def take(browser: Browser, token: str) -> httpx2.Response:
    return await browser.http.post(TAKE, json={"token": token})


async def identities(db: AsyncDatabase) -> list[Any]:
    async with db.session(read_only=True) as session:
        return list(await session.scalars(select(OAuthIdentity)))


async def test_who_opens_the_link_in_the_same_browser_logs_in_with_the_provider_from_then_on(
    client: Client, browser: Browser, sqlite_db: AsyncDatabase
) -> None:
    token = await offered(client, browser)
    assert await identities(sqlite_db) == []
    [values] = [values for name, _, values in client.mailbox.sent if name == "oauth_offer"]
    assert values["provider"] == "acme"
    assert values["link"].startswith("/link-account#")
    assert (await take(browser, token)).status_code == 204
    [identity] = await identities(sqlite_db)
    assert (identity.provider, identity.subject, identity.email) == ("acme", "ana", ANA)
    assert (await browser.http.get("/auth/me")).status_code == 401, "to link is not to log in"
    assert (await browser.log_in()).status_code == 303
    assert (await browser.http.get("/auth/me")).json()["email"] == ANA
    await client.log_in()  # the password still opens it
    async with sqlite_db.session(read_only=True) as session:
        wanted = select(AuditEntry.action).where(AuditEntry.action.startswith("oauth.")).order_by(AuditEntry.sequence)
        actions = list(await session.scalars(wanted))
    assert actions == ["oauth.link_offered", "oauth.refused", "oauth.linked", "oauth.logged_in"]


async def test_in_any_other_browser_the_link_is_worth_nothing(
    client: Client, browser: Browser, sqlite_db: AsyncDatabase
) -> None:
    """An owner who is lured into opening the link of somebody else's login links nobody to the account."""
    token = await offered(client, browser)
    async with browser_of(client.app) as owner:
        await owner.http.post("/auth/login", json={"email": ANA, "password": PASSWORD, "cookies": True})
        assert_problem(await take(owner, token), 400, "bad_request")
        await owner.begin()
        own = owner.flows[0]
        owner.http.cookies.set(browser.flows[0], owner.http.cookies[own], domain="test.local")
        assert_problem(await take(owner, token), 400, "bad_request")
    assert await identities(sqlite_db) == []
    assert (await take(browser, token)).status_code == 204, "who tried in vain has not used it up"


async def test_a_link_is_good_once_even_when_it_is_opened_many_times_at_once(
    client: Client, browser: Browser, sqlite_db: AsyncDatabase
) -> None:
    token = await offered(client, browser)
    answers = await gather(*(take(browser, token) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [204, 400, 400, 400, 400]
    ana = await client.log_in()
    [identity] = await identities(sqlite_db)
    assert (await ana.http.delete(f"/oauth/identities/{identity.id}", headers=ana.bearer)).status_code == 204
    assert_problem(await take(browser, token), 400, "bad_request")
    assert await identities(sqlite_db) == []


async def test_a_link_is_good_for_a_while(client: Client, browser: Browser, clock: FakeClock) -> None:
    early, late = await offered(client, browser), ""
    clock.advance(599)
    assert (await take(browser, early)).status_code == 204
    async with browser_of(client.app) as other:
        late = await offered(client, other, provider="other")
        clock.advance(600)
        assert_problem(await take(other, late), 400, "bad_request")


@pytest.mark.parametrize("token", ["", "x", "a.b", "x" * 4097, "é"])
async def test_what_is_no_link_of_ours_links_nothing(token: str, client: Client, browser: Browser) -> None:
    good = await offered(client, browser)
    for wrong in (token, good[:-1], f"{good[:-6]}AAAAA="):
        assert (await take(browser, wrong)).status_code in (400, 422)
    [flow] = browser.flows
    assert_problem(await take(browser, browser.http.cookies[flow]), 400, "bad_request")  # sealed, but no offer


async def change_address(client: Client, db: AsyncDatabase) -> None:
    async with db.session() as session:
        (await session.scalars(select(User))).one().email = "new@example.com"


async def disable(client: Client, db: AsyncDatabase) -> None:
    async with db.session() as session:
        user = (await session.scalars(select(User).where(User.email == ANA))).one()
        await wiring_of(client.app).get(Accounts).disable(session, user.id, reason="test")


async def delete(client: Client, db: AsyncDatabase) -> None:
    async with db.session() as session:
        await session.delete((await session.scalars(select(User))).one())


@pytest.mark.parametrize("change", [change_address, disable, delete], ids=lambda change: change.__name__)
async def test_an_account_that_is_not_the_same_any_more_is_not_linked(
    change: Any, client: Client, browser: Browser, sqlite_db: AsyncDatabase
) -> None:
    token = await offered(client, browser)
    await change(client, sqlite_db)
    assert_problem(await take(browser, token), 400, "bad_request")
    assert await identities(sqlite_db) == []


async def test_nothing_is_offered_where_the_account_may_be_somebody_elses(
    client: Client, browser: Browser, sqlite_db: AsyncDatabase
) -> None:
    """Whoever registered the address without proving it would keep a way in."""
    await client.register("bo@example.com")
    assert_page(await browser.log_in("bo"), 409, "conflict")
    await disable(client, sqlite_db)
    assert_page(await browser.log_in("ana"), 409, "conflict")
    assert [name for name, _, _ in client.mailbox.sent if name == "oauth_offer"] == []


async def test_nothing_is_offered_for_an_address_that_the_provider_has_not_verified(
    client: Client, browser: Browser, impostor: Impostor
) -> None:
    impostor.claims = {"email_verified": False}
    assert_page(await browser.log_in(), 403, "forbidden")
    assert client.mailbox.to(ANA) == ["verify"]


async def test_an_identity_that_was_linked_elsewhere_meanwhile_is_not_taken_from_there(
    client: Client, browser: Browser, sqlite_db: AsyncDatabase, acme: OAuthProvider
) -> None:
    token = await offered(client, browser)
    await client.register("bo@example.com")
    async with sqlite_db.session() as session:
        bo = (await session.scalars(select(User).where(User.email == "bo@example.com"))).one()
        values = {"provider": "acme", "issuer": acme.issuer, "subject": "ana", "user_id": bo.id}
        session.add(OAuthIdentity(**values, created_at=client.clock.now()))
    assert_problem(await take(browser, token), 409, "conflict")


async def test_every_route_says_who_may_call_it(client: Client) -> None:
    assert [str(route) for route in routes_without_policy(client.app)] == []
