"""Logins under way: bound to the browser that began them, good once, for a while, and for pages of ours."""

from __future__ import annotations

import json
from asyncio import gather
from collections.abc import AsyncIterator
from dataclasses import asdict
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from svc_infra.db import AsyncDatabase
from svc_infra.errors import BadRequestError, ValidationError
from svc_infra.security.cookies import CSRF_COOKIE, REFRESH_COOKIE, Cookies
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import Session, User
from svc_infra.security.oauth import OAuthProvider
from svc_infra.security.oauth.flow import MAX_FLOWS, Flow, Flows, checked_next
from svc_infra.security.oauth.models import SpentState
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import assert_problem, running
from tests.security.oauth.conftest import CALLBACK, HTML, agree, app_with, assert_page, browser_of
from tests.security.oauth.impostor import Impostor

ORIGINS = ("https://app.example.com", "http://localhost:3000")


@pytest.fixture
async def app(sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider) -> AsyncIterator[FastAPI]:
    app = app_with(sqlite_db, clock, acme, auth={"oauth_next_origins": ORIGINS})
    async with running(app, clock):
        yield app


@pytest.fixture
def flows(sqlite_db: AsyncDatabase, keys: KeyRing, clock: FakeClock) -> Flows:
    return Flows(sqlite_db, Cookies(keys, clock=clock), ttl_seconds=600, clock=clock)


def flow(began: int = 0) -> Flow:
    return Flow(provider="acme", redirect_uri=CALLBACK, next="/", began=began)


async def test_the_provider_is_asked_with_everything_that_ties_its_answer_to_the_browser(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        asked = {name: value[0] for name, value in parse_qs(urlsplit(await browser.begin()).query).items()}
        assert len({asked.pop(name) for name in ("state", "nonce", "code_challenge")}) == 3
        assert asked == {
            "response_type": "code", "client_id": "the-client", "redirect_uri": CALLBACK,
            "scope": "openid email profile", "code_challenge_method": "S256",
        }  # fmt: skip


async def test_the_login_that_the_browser_had_ends_though_its_cookies_do_not_come_back_from_the_provider(
    app: FastAPI,
) -> None:
    async with browser_of(app) as browser:
        assert (await browser.log_in("ana")).status_code == 303
        back = await agree(await browser.begin(), "bob")
        for name in (REFRESH_COOKIE, CSRF_COOKIE):  # SameSite=Strict: not with a navigation from another site
            del browser.http.cookies[name]
        assert (await browser.come_back(back)).status_code == 303
        assert (await browser.http.get("/auth/me")).json()["email"] == "bob@example.com"
    async with wiring_of(app).get(AsyncDatabase).session(read_only=True) as session:
        rows = await session.execute(
            select(User.email, Session.revoke_reason).join(Session, Session.user_id == User.id).order_by(User.email)
        )
        assert [tuple(row) for row in rows] == [("ana@example.com", "replaced"), ("bob@example.com", None)]


async def test_a_strange_refresh_cookie_begins_a_login_as_well(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        for held in ("x", "x" * 4000):
            headers = {**HTML, "Cookie": f"{REFRESH_COOKIE}={held}"}
            answer = await browser.http.get("/oauth/authorize?provider=acme", headers=headers)
            assert answer.status_code == 303


async def test_the_cookie_is_of_this_host_and_nobody_reads_it(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        answer = await browser.http.get("/oauth/authorize?provider=acme", headers=HTML)
        [(name, morsel)] = SimpleCookie(answer.headers["set-cookie"]).items()
        assert name.startswith("__Host-oauth-")
        wanted = {"path": "/", "domain": "", "secure": True, "httponly": True, "samesite": "lax", "max-age": "600"}
        assert {key: morsel[key] for key in wanted} == wanted
        state = parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]
        assert state not in answer.headers["set-cookie"]
        assert answer.headers["cache-control"] == "no-store"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_other_browser_ends_a_login(flows: Flows, data: st.DataObject) -> None:
    victim, own = flow(), flow()
    sealed, name = flows.sealed(victim), victim.cookie_name
    cut = data.draw(st.integers(0, len(sealed) - 1))
    others = data.draw(
        st.sampled_from(
            [
                {},
                {own.cookie_name: flows.sealed(own)},
                {name: flows.sealed(own)},
                {own.cookie_name: sealed},
                {name: sealed[:cut]},
                {name: sealed[:cut] + ("A" if sealed[cut] != "A" else "B") + sealed[cut + 1 :]},
                {name: data.draw(st.text(max_size=100))},
            ]
        )
    )
    with pytest.raises(BadRequestError):
        await flows.end(victim.state, others)
    with pytest.raises(BadRequestError):
        await flows.end(data.draw(st.text(max_size=60)), {name: sealed})


async def test_a_cookie_that_holds_another_login_ends_none(flows: Flows, keys: KeyRing, clock: FakeClock) -> None:
    asked, held = flow(), flow()
    sealed = Cookies(keys, clock=clock).seal(asked.cookie_name, json.dumps(asdict(held)), max_age_seconds=600)
    with pytest.raises(BadRequestError):
        await flows.end(asked.state, {asked.cookie_name: sealed})


async def test_an_answer_that_was_stolen_is_of_no_use_in_any_other_browser(app: FastAPI) -> None:
    async with browser_of(app) as victim:
        url = await agree(await victim.begin())
        for number in range(50):
            async with browser_of(app) as thief:
                for _ in range(number % (MAX_FLOWS + 1)):
                    await thief.begin()
                assert_page(await thief.come_back(url), 400, "bad_request")
                assert not {name for name in thief.http.cookies if "oauth" not in name}
        assert (await victim.come_back(url)).status_code == 303


async def test_a_login_that_took_too_long_is_over(flows: Flows, clock: FakeClock) -> None:
    late, in_time = flow(), flow()
    cookies = {one.cookie_name: flows.sealed(one) for one in (late, in_time)}
    clock.advance(599)
    assert await flows.end(in_time.state, cookies) == in_time
    clock.advance(1)
    with pytest.raises(BadRequestError):
        await flows.end(late.state, cookies)


async def test_of_the_same_answer_many_times_at_once_one_is_taken(
    db: AsyncDatabase, keys: KeyRing, clock: FakeClock
) -> None:
    flows = Flows(db, Cookies(keys, clock=clock), ttl_seconds=600, clock=clock)
    one = flow()
    cookies = {one.cookie_name: flows.sealed(one)}
    results = await gather(*(flows.end(one.state, cookies) for _ in range(8)), return_exceptions=True)
    assert [type(result) for result in results if result != one] == [BadRequestError] * 7


async def test_used_states_are_forgotten_once_they_are_too_old_anyway(
    flows: Flows, sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    for _ in range(30):
        one = flow()
        await flows.end(one.state, {one.cookie_name: flows.sealed(one)})
        clock.advance(601)
    async with sqlite_db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(SpentState)) == 1


async def test_a_browser_has_few_logins_under_way_and_the_newest_stay(app: FastAPI, clock: FakeClock) -> None:
    async with browser_of(app) as browser:
        browser.http.cookies.set("__Host-oauth-dead", "x", domain="test.local")
        urls = []
        for _ in range(MAX_FLOWS + 2):
            urls.append(await browser.begin())
            clock.advance(1)
        assert len(browser.flows) == MAX_FLOWS
        statuses = [(await browser.come_back(await agree(url))).status_code for url in urls]
        assert statuses == [400, 400, *[303] * MAX_FLOWS]


@pytest.mark.parametrize("page", ["/", "/home?a=b#c", "https://app.example.com", "http://localhost:3000/x?y#z"])
async def test_one_goes_to_the_page_that_the_login_began_with(page: str, app: FastAPI) -> None:
    async with browser_of(app) as browser:
        assert (await browser.log_in(next=page)).headers["location"] == page


@pytest.mark.parametrize(
    "page",
    [
        "", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "https://evil.example",
        "https://app.example.com@evil.example", "https://app.example.com.evil.example", "https://app.example.com:444",
        "http://app.example.com", "HTTPS://app.example.com", "https:/app.example.com", "https:app.example.com", "home",
        " /home", "/ho\tme", "/home\r\nSet-Cookie: a=b", "/é", "https://[", "data:text/html,x", "?next=/", "#", "/" * 2,
        "/" + "x" * 512, "https://app.example.com\\@evil.example",
    ],
)  # fmt: skip
async def test_one_goes_nowhere_else(page: str, app: FastAPI) -> None:
    async with browser_of(app) as browser:
        answer = await browser.http.get(f"/oauth/authorize?{urlencode({'provider': 'acme', 'next': page})}")
        assert_problem(answer, 422, "validation_error")
        assert browser.flows == []


@given(st.text(max_size=60), st.sampled_from(["", "/", "https://app.example.com", "https://", "//", "/\\"]))
def test_whatever_is_taken_leads_to_this_host_or_an_allowed_origin(rest: str, start: str) -> None:
    try:
        page = checked_next(start + rest, ORIGINS)
    except ValidationError:
        return
    went = urlsplit(page)
    assert (went.scheme, went.netloc) in {("", ""), ("https", "app.example.com"), ("http", "localhost:3000")}
    assert page.startswith(("/", *ORIGINS))


async def test_a_provider_that_nobody_named_is_not_found(app: FastAPI) -> None:
    async with browser_of(app) as browser:
        assert_problem(await browser.http.get("/oauth/authorize?provider=evil"), 404, "not_found")
        assert (await browser.http.get("/oauth/providers")).json() == ["acme"]


async def test_the_code_is_exchanged_with_the_address_that_the_login_began_with(
    app: FastAPI, impostor: Impostor
) -> None:
    async with browser_of(app) as browser:
        await browser.log_in()
        assert impostor.token_form["redirect_uri"] == CALLBACK
        assert len(impostor.token_form["code_verifier"]) == 43
