"""Logins with a certified OpenID provider, end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.audit import AuditEntry
from svc_infra.security.oauth import oidc
from svc_infra.types import SystemClock
from tests.security.conftest import running
from tests.security.oauth.conftest import HTML, agree, app_with, browser_of


@pytest.fixture
async def app(db: AsyncDatabase, certified: str) -> AsyncIterator[FastAPI]:
    app = app_with(db, SystemClock(), oidc("acme", certified))
    async with running(app, None):  # type: ignore[arg-type]
        yield app


async def test_a_newcomer_gets_an_account_and_the_same_one_the_next_time(app: FastAPI, db: AsyncDatabase) -> None:
    ids = []
    for _ in range(2):
        async with browser_of(app) as browser:
            answer = await browser.log_in(next="/home?tab=1")
            assert (answer.status_code, answer.headers["location"]) == (303, "/home?tab=1")
            me = (await browser.http.get("/auth/me")).json()
            assert (me["email"], me["is_verified"], browser.flows) == ("ana@example.com", True, [])
            ids.append(me["id"])
    assert ids[0] == ids[1]
    async with db.session(read_only=True) as session:
        actions = list(await session.scalars(select(AuditEntry.action).order_by(AuditEntry.sequence)))
    login = ["oauth.logged_in", "session.opened"]
    assert actions == ["account.registered", "oauth.linked", *login, *login]


async def test_a_script_gets_tokens_instead_of_cookies(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        begun = (await browser.http.get("/oauth/authorize?provider=acme")).json()
        assert set(begun) == {"authorization_url", "state"}
        answer = await browser.http.get(await agree(begun["authorization_url"]))
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    async with browser_of(app) as other:
        assert (await other.http.get("/auth/me", headers=bearer)).json()["email"] == "ana@example.com"


async def test_an_address_that_the_provider_has_not_verified_gets_no_account(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        answer = await browser.log_in("bo-unverified")
        assert answer.status_code == 403
        assert (await browser.http.get("/auth/me")).status_code == 401


async def test_an_answer_is_good_once_and_in_its_own_browser(app: FastAPI) -> None:
    async with browser_of(app) as browser, browser_of(app) as thief:
        url = await agree(await browser.begin())
        kept = dict(browser.http.cookies)
        assert (await thief.come_back(url)).status_code == 400
        await thief.begin()
        assert (await thief.come_back(url)).status_code == 400
        assert (await browser.come_back(url)).status_code == 303
        browser.http.cookies.update(kept)
        assert (await browser.http.get(url, headers=HTML)).status_code == 400


async def test_two_tabs_come_back_in_any_order(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        first, second = await browser.begin(next="/one"), await browser.begin(next="/two")
        for url, page in ((second, "/two"), (first, "/one")):
            answer = await browser.come_back(await agree(url))
            assert (answer.status_code, answer.headers["location"]) == (303, page)
        assert browser.flows == []


async def test_a_restart_between_leaving_and_coming_back_changes_nothing(sqlite_url: str, certified: str) -> None:
    apps = [app_with(sqlite_url, SystemClock(), oidc("acme", certified)) for _ in range(2)]
    async with running(apps[0], None), browser_of(apps[0]) as before:  # type: ignore[arg-type]
        url, cookies = await before.begin(next="/home"), dict(before.http.cookies)
    async with running(apps[1], None), browser_of(apps[1]) as after:  # type: ignore[arg-type]
        after.http.cookies.update(cookies)
        answer = await after.come_back(await agree(url))
        assert (answer.status_code, answer.headers["location"]) == (303, "/home")
