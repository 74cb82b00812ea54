"""A login with another provider takes the second step too: in its browser, on a page of the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.security.cookies import ACCESS_COOKIE, SECOND_STEP_COOKIE
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.oauth import OAuthProvider
from svc_infra.testing import FakeClock
from tests.security.conftest import Client, running
from tests.security.mfa.conftest import ANA, Owner
from tests.security.oauth.conftest import Browser, agree, app_with, browser_of, client_of_every_provider, impostor
from tests.security.oauth.conftest import acme as acme

__all__ = ["acme", "client_of_every_provider", "impostor"]


@pytest.fixture
async def ana(sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider) -> AsyncIterator[Owner]:
    """Ana has an authenticator app and an identity at the provider."""
    app = app_with(sqlite_db, clock, acme, mfa={"page_url": "https://app.example.com/second-factor"})
    add_mfa(app)
    async with running(app, clock) as client:
        user_id = await client.register()
        await client.http.post("/auth/verify", json={"token": client.mailbox.token("verify", ANA)})
        ana = Owner(await client.log_in(), user_id)
        asked = await ana.post("/oauth/identities", provider="acme")
        await Browser(client.http).come_back(await agree(asked.json()["authorization_url"]))
        await ana.enrol_totp()
        yield ana


async def test_a_browser_is_sent_to_the_page_that_asks_and_only_it_may_answer(ana: Owner) -> None:
    async with browser_of(ana.client.app) as browser:
        answer = await browser.log_in("ana", next="/home?tab=1")
        assert answer.status_code == 303
        there = urlsplit(answer.headers["location"])
        assert there._replace(fragment="").geturl() == "https://app.example.com/second-factor"
        asked = {name: value[0] for name, value in parse_qs(there.fragment).items()}
        assert (asked["methods"], asked["next"]) == ("recovery_code,totp", "/home?tab=1")
        assert ACCESS_COOKIE not in browser.http.cookies
        assert (await ana.verify(asked["mfa_token"], ana.code())).status_code == 401
        body = {"mfa_token": asked["mfa_token"], "code": ana.code()}
        done = await browser.http.post("/auth/mfa/verify", json=body)
        assert done.status_code == 200, done.text
        assert SECOND_STEP_COOKIE not in browser.http.cookies
        assert (await browser.http.get("/auth/me")).json()["email"] == ANA


async def test_another_client_gets_the_token_of_the_step(ana: Owner) -> None:
    http = ana.client.http
    begun = await http.get("/oauth/authorize", params={"provider": "acme"})
    answer = await http.get(await agree(begun.json()["authorization_url"]))
    assert (answer.status_code, answer.json()["methods"]) == (202, ["recovery_code", "totp"])
    assert (await ana.verify(answer.json()["mfa_token"], ana.code())).status_code == 200


async def test_an_identity_is_linked_by_a_fresh_login_only(ana: Owner) -> None:
    client: Client = ana.client
    ana.clock.advance(901)
    client.tokens = (await client.refresh()).json()
    refused = await ana.post("/oauth/identities", provider="acme")
    assert (refused.status_code, refused.json()["code"]) == (401, "insufficient_user_authentication")
    client.tokens |= (await ana.post("/auth/reauthenticate", code=ana.code())).json()
    assert (await ana.post("/oauth/identities", provider="acme")).status_code == 200
