"""Logins of browsers: tokens in cookies, and requests that no other site can send with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookies import SimpleCookie

import httpx2
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security import Sessions
from svc_infra.security.audit import AuditEntry
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, REFRESH_COOKIE
from svc_infra.security.models import Session, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service
from tests.security.test_http import add_routes

ANA = {"email": "ana@example.com", "password": PASSWORD}


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    cors = {"origins": "https://app.example.com", "credentials": True}
    app = service(sqlite_db, clock, cors=cors)
    add_routes(app)
    async with running(app, clock) as client:
        await client.register()
        yield client


async def log_in(client: Client, **headers: str) -> httpx2.Response:
    return await client.http.post("/auth/login", json={**ANA, "cookies": True}, headers=headers)


def csrf(client: Client) -> dict[str, str]:
    return {"X-CSRF-Token": client.http.cookies[CSRF_COOKIE]}


async def revoked(client: Client) -> list[AuditEntry]:
    """What is on record of logins that were ended."""
    async with wiring_of(client.app).get(AsyncDatabase).session(read_only=True) as session:
        return list(await session.scalars(select(AuditEntry).where(AuditEntry.action == "session.revoked")))


async def alive(client: Client, email: str = ANA["email"]) -> int:
    """How many logins an account has; nobody logs in to see that."""
    wiring = wiring_of(client.app)
    async with wiring.get(AsyncDatabase).session(read_only=True) as session:
        user_id = await session.scalar(select(User.id).where(User.email == email))
        assert user_id is not None
        return len(await wiring.get(Sessions).list(session, user_id))


async def test_a_browser_logs_in_refreshes_and_logs_out_with_cookies_alone(client: Client) -> None:
    answer = await log_in(client)
    assert answer.status_code == 200
    assert answer.json() == {"token_type": "cookie", "csrf_token": client.http.cookies[CSRF_COOKIE], "expires_in": 900}
    assert answer.headers["cache-control"] == "no-store"
    assert (await client.http.get("/auth/me")).json()["email"] == ANA["email"]
    assert (await client.http.patch("/auth/me", json={"full_name": "Ana"}, headers=csrf(client))).status_code == 200
    before = dict(client.http.cookies)
    assert (await client.http.post("/auth/refresh", headers=csrf(client))).status_code == 200
    assert all(client.http.cookies[name] != value for name, value in before.items())
    assert (await client.http.post("/auth/logout", headers=csrf(client))).status_code == 204
    assert dict(client.http.cookies) == {}
    assert (await client.http.get("/whoami")).json()["id"] == ""


async def test_the_cookies_are_of_this_host_over_https_and_no_script_reads_the_tokens(client: Client) -> None:
    answer = await log_in(client)
    set_ones = [SimpleCookie(line) for line in answer.headers.get_list("set-cookie")]
    cookies = {name: morsel for one in set_ones for name, morsel in one.items()}
    assert set(cookies) == {ACCESS_COOKIE, REFRESH_COOKIE, CSRF_COOKIE}
    for name, morsel in cookies.items():
        assert name.startswith("__Host-")
        assert (morsel["path"], morsel["secure"], morsel["domain"]) == ("/", True, "")
        assert bool(morsel["httponly"]) is (name != CSRF_COOKIE)
    assert cookies[ACCESS_COOKIE]["samesite"] == "lax"
    assert cookies[REFRESH_COOKIE]["samesite"] == "strict"
    assert (cookies[ACCESS_COOKIE]["max-age"], cookies[REFRESH_COOKIE]["max-age"]) == ("900", str(30 * 86400))


async def test_a_request_that_changes_something_needs_the_token_of_its_own_login(client: Client) -> None:
    await log_in(client)
    other_login = csrf(client)["X-CSRF-Token"]
    await log_in(client)
    own = csrf(client)["X-CSRF-Token"]
    access, cookie = client.http.cookies[ACCESS_COOKIE], CSRF_COOKIE
    wrong = {
        "none": ({}, own),
        "empty": ({"X-CSRF-Token": ""}, ""),
        "of another login": ({"X-CSRF-Token": other_login}, other_login),
        "not the cookie's": ({"X-CSRF-Token": own}, other_login),
        "cut": ({"X-CSRF-Token": own[:-1]}, own[:-1]),
        "forged": ({"X-CSRF-Token": own[:-4] + "AAAA"}, own[:-4] + "AAAA"),
        "long": ({"X-CSRF-Token": "A" * 2000}, "A" * 2000),
    }
    client.http.cookies.clear()
    for name, (headers, sent) in wrong.items():
        cookies = {"Cookie": f"{ACCESS_COOKIE}={access}; {cookie}={sent}"}
        answer = await client.http.post("/auth/logout-all", headers={**headers, **cookies})
        assert_problem(answer, 403, "forbidden"), name
    good = {"X-CSRF-Token": own, "Cookie": f"{ACCESS_COOKIE}={access}; {cookie}={own}"}
    assert (await client.http.post("/auth/logout-all", headers=good)).status_code == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://test.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://test"}, 200),
        ({"Origin": "https://app.example.com"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_another_site_can_neither_log_in_nor_send_a_request(
    headers: dict[str, str], status: int, client: Client
) -> None:
    assert (await log_in(client, **headers)).status_code == status
    await log_in(client)
    changed = await client.http.patch("/auth/me", json={}, headers={**csrf(client), **headers})
    assert changed.status_code == status
    refreshed = await client.http.post("/auth/refresh", headers={**csrf(client), **headers})
    assert refreshed.status_code == status
    assert (await client.http.get("/auth/me", headers=headers)).status_code == 200


async def test_a_refresh_without_a_token_of_the_page_leaves_the_login_as_it_is(client: Client) -> None:
    await log_in(client)
    assert_problem(await client.http.post("/auth/refresh"), 403, "forbidden")
    client.clock.advance(11)
    assert (await client.http.post("/auth/refresh", headers=csrf(client))).status_code == 200


async def test_a_token_in_the_header_needs_no_proof_and_wins_over_a_cookie(client: Client) -> None:
    bob_id = await client.register("bob@example.com")
    bob = await client.log_in("bob@example.com")
    await log_in(client)
    assert (await client.http.get("/whoami", headers=bob.bearer)).json()["id"] == str(bob_id)
    answer = await client.http.post("/auth/logout", headers=bob.bearer)
    assert (answer.status_code, "set-cookie" in answer.headers) == (204, False), "the cookies are of another login"
    assert "clear-site-data" not in answer.headers
    assert (await client.http.get("/auth/me")).json()["email"] == ANA["email"]


async def test_a_browsers_new_login_ends_the_one_before(client: Client) -> None:
    await client.register("bob@example.com")
    await log_in(client)
    await log_in(client)
    assert await alive(client) == 1, "of the same account"
    bob = {"email": "bob@example.com", "password": PASSWORD, "cookies": True}
    assert (await client.http.post("/auth/login", json=bob)).status_code == 200
    assert (await alive(client), await alive(client, "bob@example.com")) == (0, 1), "and of another one"
    async with wiring_of(client.app).get(AsyncDatabase).session(read_only=True) as session:
        reasons = await session.scalars(select(Session.revoke_reason).where(Session.revoked_at.is_not(None)))
        assert set(reasons) == {"replaced"}


async def test_a_login_without_cookies_leaves_that_of_the_browser_alone(client: Client) -> None:
    await log_in(client)
    await client.log_in()
    assert (await client.http.post("/auth/login", json={**ANA, "password": "wrong password"})).status_code == 401
    assert await alive(client) == 2
    assert (await client.http.get("/auth/me")).status_code == 200


@pytest.mark.parametrize("held", ["", "x", "x" * 4000, "\u00e9"])
async def test_what_is_no_refresh_token_is_no_login_that_could_end(held: str, client: Client) -> None:
    await client.log_in()
    headers = {b"Cookie": f"{REFRESH_COOKIE}={held}".encode("latin-1")}
    answer = await client.http.post("/auth/login", json={**ANA, "cookies": True}, headers=headers)
    assert answer.status_code == 200
    assert await alive(client) == 2


async def test_a_refresh_token_that_was_used_before_still_says_which_login_is_replaced(client: Client) -> None:
    await log_in(client)
    before = client.http.cookies[REFRESH_COOKIE]
    assert (await client.http.post("/auth/refresh", headers=csrf(client))).status_code == 200
    client.http.cookies.set(REFRESH_COOKIE, before, domain="test", path="/")
    await log_in(client)
    assert await alive(client) == 1


async def test_who_comes_back_late_can_still_log_out(client: Client) -> None:
    await log_in(client)
    client.clock.advance(901)  # the browser has thrown away the access token
    del client.http.cookies[ACCESS_COOKIE]
    assert_problem(await client.http.post("/auth/logout"), 403, "forbidden")
    assert await alive(client) == 1, "another site cannot log anybody out"
    answer = await client.http.post("/auth/logout", headers=csrf(client))
    assert (answer.status_code, dict(client.http.cookies), await alive(client)) == (204, {}, 0)
    [entry] = await revoked(client)
    assert entry.actor_id != ""


async def test_a_login_that_has_ended_elsewhere_leaves_the_browser_by_a_logout_too(client: Client) -> None:
    await log_in(client)
    phone = await client.log_in()
    assert (await client.http.post("/auth/sessions/revoke-others", headers=phone.bearer)).status_code == 204
    assert_problem(await client.http.get("/auth/me"), 401, "invalid_token")
    answer = await client.http.post("/auth/logout", headers=csrf(client))
    assert (answer.status_code, dict(client.http.cookies)) == (204, {})
    assert await alive(client) == 1, "the phone's"
    assert_problem(await client.http.post("/auth/logout"), 401, "unauthorized")


async def test_a_refresh_cookie_opens_nothing_but_the_way_out(client: Client) -> None:
    await log_in(client)
    del client.http.cookies[ACCESS_COOKIE]
    for method, path in (("GET", "/auth/me"), ("POST", "/auth/logout-all"), ("POST", "/auth/sessions/revoke-others")):
        assert_problem(await client.http.request(method, path, headers=csrf(client)), 401, "unauthorized")
    bad = {**csrf(client), "Authorization": "Bearer x.y.z"}
    assert_problem(await client.http.post("/auth/logout", headers=bad), 401, "invalid_token")
    assert await alive(client) == 1


@pytest.mark.parametrize(
    ("setting", "header"), [(None, '"storage"'), ("cache, storage", '"cache", "storage"'), ("off", None)]
)
async def test_a_browser_forgets_what_the_login_has_left_behind(
    setting: str | None, header: str | None, sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = service(sqlite_db, clock, auth={"clear_site_data": setting} if setting else {})
    async with running(app, clock) as client:
        await client.register()
        for method, path, body in (
            ("POST", "/auth/logout", None),
            ("POST", "/auth/logout-all", None),
            ("POST", "/auth/disable", {"password": PASSWORD}),
        ):
            await log_in(client)
            answer = await client.http.request(method, path, json=body, headers=csrf(client))
            assert (answer.status_code, answer.headers.get("clear-site-data")) == (204, header), path
            assert dict(client.http.cookies) == {}


def test_a_browser_is_told_to_forget_only_what_browsers_know() -> None:
    for wrong in ("cookie", "storage,", "off,cache", "*"):
        with pytest.raises(ConfigurationError, match="CLEAR_SITE_DATA"):
            Settings(auth={"clear_site_data": wrong})


async def test_cookies_that_were_cut_or_belong_to_another_place_are_refused(client: Client) -> None:
    await log_in(client)
    access, refresh = client.http.cookies[ACCESS_COOKIE], client.http.cookies[REFRESH_COOKIE]
    client.http.cookies.clear()
    for value in (access[:-1], refresh, "", "x" * 3000):
        answer = await client.http.get("/whoami", headers={"Cookie": f"{ACCESS_COOKIE}={value}"})
        assert_problem(answer, 401, "invalid_token")


def test_a_websocket_is_opened_by_pages_of_this_app_alone(clock: FakeClock, sqlite_url: str) -> None:
    app = service(sqlite_url, clock)
    add_routes(app)
    with TestClient(app, base_url="https://testserver") as client:
        client.post("/auth/register", json=ANA)
        client.post("/auth/login", json={**ANA, "cookies": True})
        cookie = f"{ACCESS_COOKIE}={client.cookies[ACCESS_COOKIE]}"
        with client.websocket_connect("/socket", headers={"Cookie": cookie, "Origin": "https://testserver"}) as socket:
            assert socket.receive_text() == ANA["email"]
        elsewhere = {"Cookie": cookie, "Origin": "https://evil.example"}
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket", headers=elsewhere):
            pass
