"""What needs a fresh login, and how a login becomes fresh again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fastapi import FastAPI

from svc_infra.db import AsyncDatabase
from svc_infra.obs import context
from svc_infra.security import Sessions
from svc_infra.security.access.http import route_policies
from svc_infra.security.cookies import ACCESS_COOKIE
from svc_infra.security.http import get_login
from svc_infra.security.principal import Principal
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service
from tests.security.mfa.authenticator import Authenticator
from tests.security.mfa.conftest import Owner, claims, with_mfa
from tests.security.mfa.test_passkeys import enrol


async def test_a_login_is_fresh_for_a_while_and_again_when_it_is_proven(ana: Owner) -> None:
    ana.clock.advance(60)
    assert (await ana.post("/danger")).status_code == 200
    ana.clock.advance(1)
    refused = await ana.post("/danger")
    assert_problem(refused, 401, "insufficient_user_authentication")
    challenge = refused.headers["www-authenticate"]
    assert challenge == 'Bearer error="insufficient_user_authentication", max_age="60"'
    before = dict(ana.client.tokens)
    renewed = await ana.post("/auth/reauthenticate", password=PASSWORD)
    assert renewed.status_code == 200
    assert renewed.headers["cache-control"] == "no-store"
    assert renewed.json().keys() == {"access_token", "token_type", "expires_in"}
    assert_problem(await ana.post("/danger"), 401, "invalid_token")  # the token from before
    ana.client.tokens |= renewed.json()
    assert (await ana.post("/danger")).status_code == 200
    assert claims(renewed.json()["access_token"])["auth_time"] == int(ana.clock.now().timestamp())
    assert claims(renewed.json()["access_token"])["sid"] == claims(before["access_token"])["sid"]


async def test_a_refresh_makes_no_login_fresh(here: Owner) -> None:
    here.clock.advance(61)
    here.client.tokens = (await here.client.refresh()).json()
    assert_problem(await here.post("/danger"), 401, "insufficient_user_authentication")


async def test_no_other_login_is_any_fresher(here: Owner) -> None:
    other = Owner(await here.client.log_in(), here.id)
    here.clock.advance(61)
    assert (await here.post("/auth/reauthenticate", password=PASSWORD)).status_code == 200
    assert_problem(await other.post("/danger"), 401, "insufficient_user_authentication")


async def test_every_factor_proves_a_login_again(here: Owner) -> None:
    key = Authenticator()
    assert (await enrol(here, key)).status_code == 201
    await here.enrol_totp()
    recovery = (await here.post("/auth/mfa/recovery-codes")).json()["codes"][0]
    for proof in ("password", "code", "recovery", "passkey"):
        here.clock.advance(120)
        assert (await here.post("/danger")).status_code == 401
        body = {"password": {"password": PASSWORD}, "code": {"code": here.code()}, "recovery": {"code": recovery}}
        if proof == "passkey":
            options = (await here.post("/auth/mfa/reauthenticate/options")).json()["public_key"]
            body[proof] = {"credential": key.get(options)}
        renewed = await here.post("/auth/reauthenticate", **body[proof])
        assert renewed.status_code == 200, (proof, renewed.text)
        here.client.tokens |= renewed.json()
        assert (await here.post("/danger")).status_code == 200


async def test_what_proves_nothing_makes_nothing_fresh(here: Owner) -> None:
    here.clock.advance(61)
    for body in ({"password": "wrong password"}, {"code": "000000"}, {"code": "a" * 24}):
        assert_problem(await here.post("/auth/reauthenticate", **body), 401, "invalid_credentials")
    for body in ({}, {"password": PASSWORD, "code": "000000"}, {"token": "x"}):
        assert_problem(await here.post("/auth/reauthenticate", **body), 422, "validation_error")
    assert_problem(await here.post("/danger"), 401, "insufficient_user_authentication")
    assert (await here.http.post("/auth/reauthenticate", json={"password": PASSWORD})).status_code == 401


async def test_a_browser_gets_its_new_token_as_a_cookie(here: Owner) -> None:
    answer = await here.log_in(cookies=True)
    headers = {"X-CSRF-Token": answer.json()["csrf_token"]}
    here.clock.advance(61)
    assert_problem(await here.http.post("/danger", headers=headers), 401, "insufficient_user_authentication")
    body = {"password": PASSWORD}
    assert_problem(await here.http.post("/auth/reauthenticate", json=body), 403, "forbidden")
    before = here.http.cookies[ACCESS_COOKIE]
    renewed = await here.http.post("/auth/reauthenticate", json=body, headers=headers)
    assert renewed.json() == {"token_type": "cookie", "expires_in": 900}
    assert here.http.cookies[ACCESS_COOKIE] != before
    assert (await here.http.post("/danger", headers=headers)).status_code == 200


async def test_an_app_without_second_factors_has_fresh_logins_too(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with running(service(sqlite_db, clock), clock) as client:
        await client.register()
        ana = await client.log_in()
        answer = await ana.http.post("/auth/reauthenticate", json={"code": "000000"}, headers=ana.bearer)
        assert_problem(answer, 401, "invalid_credentials")
        answer = await ana.http.post("/auth/reauthenticate", json={"password": PASSWORD}, headers=ana.bearer)
        assert answer.status_code == 200


async def test_neither_a_key_nor_who_acts_as_somebody_else_is_ever_fresh(here: Owner) -> None:
    """Whatever identifies an impersonated caller: the actor in context, or a principal that nobody has proven."""
    sessions = wiring_of(here.client.app).get(Sessions)
    owner = await sessions.principal(here.client.tokens["access_token"])
    assert sessions.is_fresh(owner, max_age_seconds=60)
    assert not sessions.is_fresh(replace(owner, authenticated_at=None), max_age_seconds=60)
    assert not sessions.is_fresh(Principal(id=owner.id, email="", via="api_key"), max_age_seconds=1e9)

    async def as_somebody_else() -> Principal:
        context.current().actor_id = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
        return owner

    here.client.app.dependency_overrides[get_login] = as_somebody_else
    assert_problem(await here.post("/danger"), 401, "insufficient_user_authentication")
    here.client.app.dependency_overrides.clear()
    assert (await here.post("/danger")).status_code == 200


def test_a_route_says_that_it_needs_a_fresh_login(clock: FakeClock) -> None:
    app: FastAPI = with_mfa("sqlite://", clock)
    [danger] = [route for route in route_policies(app) if route.path == "/danger"]
    assert "login proven within 60 seconds" in danger.policies


@pytest.fixture
async def client(here: Owner) -> Client:
    return here.client
