"""Credentials that were tampered with, swapped or are far too long: a clear refusal, and nothing is changed."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, REFRESH_COOKIE
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import AccountLink, Attempts, RefreshToken, Session, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service

HUGE = "x" * 1_000_000
Claims = dict[str, Any]


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(service(sqlite_db, clock), clock) as client:
        yield client


async def state(db: AsyncDatabase) -> list[list[tuple[Any, ...]]]:
    """Every row that says who may come in."""
    async with db.session(read_only=True) as session:
        return [
            sorted(map(tuple, (await session.execute(select(kind.__table__))).all()), key=str)
            for kind in (User, Session, RefreshToken, AccountLink, Attempts)
        ]


def encoded(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(part: str) -> Any:
    return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))


FORGED: dict[str, Callable[[dict[str, str], Claims], tuple[object, object]]] = {  # the header and the claims
    "alg none": lambda header, claims: ({**header, "alg": "none"}, claims),
    "alg HS512": lambda header, claims: ({**header, "alg": "HS512"}, claims),
    "alg RS256": lambda header, claims: ({**header, "alg": "RS256"}, claims),
    "typ of a refresh token": lambda header, claims: ({**header, "typ": "rt+jwt"}, claims),
    "kind of a refresh token": lambda header, claims: (header, {**claims, "typ": "refresh"}),
    "another audience": lambda header, claims: (header, {**claims, "aud": "somebody"}),
    "another issuer": lambda header, claims: (header, {**claims, "iss": "somebody"}),
    "not valid yet": lambda header, claims: (header, {**claims, "nbf": claims["nbf"] + 3600}),
    "another login": lambda header, claims: (header, {**claims, "sid": claims["sub"]}),
    "another user": lambda header, claims: (header, {**claims, "sub": claims["sid"]}),
    "a claim twice": lambda header, claims: (header, json.dumps(claims)[:-1].encode() + b', "sub": "admin"}'),
    "a megabyte": lambda header, claims: (header, {**claims, "more": HUGE}),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_token_that_is_well_signed_and_wrong_opens_and_changes_nothing(
    name: str, client: Client, sqlite_db: AsyncDatabase
) -> None:
    await client.register()
    ana = await client.log_in()
    head, body, _ = ana.tokens["access_token"].split(".")
    header, claims = FORGED[name](decoded(head), decoded(body))
    signed = f"{encoded(header)}.{encoded(claims)}"
    [key, *_] = wiring_of(client.app).get(KeyRing).derived("access-token")
    token = f"{signed}.{encoded(hmac.digest(key, signed.encode(), 'sha256'))}"
    before, refusal = await state(sqlite_db), (401, "invalid_token")
    if name == "a megabyte":
        refusal = (431, "headers_too_large")
    for shown in (token, f"{signed}."):
        for method, path in (("GET", "/auth/me"), ("POST", "/auth/logout-all")):
            answer = await client.http.request(method, path, headers={"Authorization": f"Bearer {shown}"})
            assert_problem(answer, *refusal)
        cookie = {"Cookie": f"{ACCESS_COOKIE}={shown}"}
        assert_problem(await client.http.get("/auth/me", headers=cookie), *refusal)
    assert await state(sqlite_db) == before
    assert (await ana.get("/auth/me")).status_code == 200


async def browser(client: Client, email: str) -> dict[str, str]:
    """The cookies of somebody who is logged in."""
    await client.register(email)
    login = {"email": email, "password": PASSWORD, "cookies": True}
    assert (await client.http.post("/auth/login", json=login)).status_code == 200
    cookies = dict(client.http.cookies)
    client.http.cookies.clear()
    return cookies


async def send(client: Client, path: str, cookies: dict[str, str], token: str) -> httpx2.Response:
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()), "X-CSRF-Token": token}
    return await client.http.post(path, headers=headers)


async def test_cookies_that_were_cut_swapped_or_are_anothers_open_and_change_nothing(
    client: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, eve = await browser(client, "ana@example.com"), await browser(client, "eve@example.com")
    access, refresh, csrf = ana[ACCESS_COOKIE], ana[REFRESH_COOKIE], ana[CSRF_COOKIE]
    before = await state(sqlite_db)
    hers = {CSRF_COOKIE: csrf}
    for cookies, token, status in [
        ({ACCESS_COOKIE: access[:-3], **hers}, csrf, 401),
        ({ACCESS_COOKIE: refresh, **hers}, csrf, 401),
        ({ACCESS_COOKIE: HUGE, **hers}, csrf, 431),
        ({ACCESS_COOKIE: eve[ACCESS_COOKIE], **hers}, csrf, 403),  # Eve's login with Ana's proof
        ({ACCESS_COOKIE: access, CSRF_COOKIE: eve[CSRF_COOKIE]}, eve[CSRF_COOKIE], 403),  # and the other way round
        ({ACCESS_COOKIE: access, **hers}, eve[CSRF_COOKIE], 403),
        ({REFRESH_COOKIE: refresh, **hers}, csrf, 401),  # a refresh token is no access token
    ]:
        answer = await send(client, "/auth/logout-all", cookies, token)
        assert answer.status_code == status, answer.text
    for cookies, token, status in [
        ({REFRESH_COOKIE: refresh[:-1], **hers}, csrf, 401),
        ({REFRESH_COOKIE: access, **hers}, csrf, 401),
        ({REFRESH_COOKIE: HUGE, **hers}, csrf, 431),
        ({REFRESH_COOKIE: refresh, **hers}, csrf[:-1], 403),
        ({REFRESH_COOKIE: refresh, **hers}, HUGE, 431),
        (hers, csrf, 422),
    ]:
        answer = await send(client, "/auth/refresh", cookies, token)
        assert answer.status_code == status, answer.text
    assert await state(sqlite_db) == before
    assert (await send(client, "/auth/logout-all", ana, csrf)).status_code == 204


async def test_a_password_of_a_megabyte_is_refused_wherever_one_is_taken(
    client: Client, sqlite_db: AsyncDatabase
) -> None:
    await client.register()
    ana = await client.log_in()
    await client.http.post("/auth/forgot-password", json={"email": "ana@example.com"})
    token = client.mailbox.token("reset", "ana@example.com")
    before = await state(sqlite_db)
    for method, path, body in [
        ("POST", "/auth/register", {"email": "new@example.com", "password": HUGE}),
        ("POST", "/auth/login", {"email": "ana@example.com", "password": HUGE}),
        ("POST", "/auth/reset-password", {"token": token, "password": HUGE}),
        ("POST", "/auth/reset-password", {"token": HUGE, "password": PASSWORD}),
        ("POST", "/auth/password", {"current_password": HUGE, "new_password": PASSWORD}),
        ("POST", "/auth/password", {"current_password": PASSWORD, "new_password": HUGE}),
        ("POST", "/auth/email", {"password": HUGE, "new_email": "new@example.com"}),
        ("POST", "/auth/disable", {"password": HUGE}),
        ("DELETE", "/auth/me", {"password": HUGE}),
        ("POST", "/auth/refresh", {"refresh_token": HUGE}),
    ]:
        answer = await client.http.request(method, path, json=body, headers=ana.bearer)
        assert_problem(answer, 422, "validation_error")
        assert "xxxx" not in answer.text
    assert await state(sqlite_db) == before


ODD = ["x" * 300 + "@example.com", "ana@" + "x" * 300 + ".com", "ana", "ana@localhost", "Ana <ana@example.com>"]


@pytest.mark.parametrize("address", ODD, ids=lambda address: address[:12])
async def test_what_is_no_address_is_refused_wherever_one_is_taken(
    address: str, client: Client, sqlite_db: AsyncDatabase
) -> None:
    await client.register()
    ana = await client.log_in()
    before = await state(sqlite_db)
    for path, body in [
        ("/auth/register", {"email": address, "password": PASSWORD}),
        ("/auth/login", {"email": address, "password": PASSWORD}),
        ("/auth/forgot-password", {"email": address}),
        ("/auth/verify/request", {"email": address}),
        ("/auth/email", {"password": PASSWORD, "new_email": address}),
    ]:
        answer = await client.http.post(path, json=body, headers=ana.bearer)
        assert_problem(answer, 422, "validation_error")
    assert await state(sqlite_db) == before


@pytest.mark.parametrize("address", ["ANA@Example.COM", " ana@example.com ", "\uff41na\uff20example.com"])
async def test_an_address_in_any_spelling_is_one_account(address: str, client: Client) -> None:
    await client.register()
    await client.log_in(address)
    again = await client.http.post("/auth/register", json={"email": address, "password": PASSWORD})
    assert (again.status_code, again.json()["email"]) == (201, "ana@example.com")
    assert client.mailbox.to("ana@example.com") == ["verify", "again"]


async def test_a_credential_in_the_address_is_worth_nothing(client: Client) -> None:
    """Addresses are in logs and histories."""
    await client.register()
    ana = await client.log_in()
    for name in ("access_token", "token", "api_key", "x-api-key", "authorization"):
        answer = await client.http.get("/auth/me", params={name: ana.tokens["access_token"]})
        assert_problem(answer, 401, "unauthorized")
    for _, _, values in client.mailbox.sent:  # and what mails carry stands where no server sees it
        assert "?" not in values.get("link", "")


async def test_a_login_that_is_not_refreshed_for_long_enough_ends(client: Client, sqlite_db: AsyncDatabase) -> None:
    """And one that is refreshed in time does not, until it is too old anyway."""
    day = 86400
    await client.register()
    idle, used = await client.log_in(), await client.log_in()
    for _ in range(2):
        client.clock.advance(13 * day)
        used.tokens = (await used.refresh()).json()
    assert_problem(await idle.refresh(), 401, "token_expired")
    client.clock.advance(4 * day)
    assert_problem(await used.refresh(), 401, "token_expired")


async def test_a_password_is_good_until_its_owner_changes_it(client: Client) -> None:
    await client.register()
    client.clock.advance(10 * 365 * 86400)
    await client.log_in()


async def test_a_fresh_service_has_no_accounts(client: Client, sqlite_db: AsyncDatabase) -> None:
    assert await state(sqlite_db) == [[], [], [], [], []]
