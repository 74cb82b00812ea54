"""Providers that misbehave: every lie is refused with a clear 4xx or 502, and nobody is logged in."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from json import dumps
from typing import Any

import pytest
from fastapi import FastAPI
from joserfc import jws, jwt
from joserfc.jwk import RSAKey
from sqlalchemy import func, select

from svc_infra.db import AsyncDatabase
from svc_infra.security.audit import AuditEntry
from svc_infra.security.models import Session, User
from svc_infra.security.oauth import OAuthProvider
from svc_infra.testing import FakeClock
from tests.security.conftest import assert_problem, running
from tests.security.oauth.conftest import Browser, agree, app_with, assert_page, browser_of
from tests.security.oauth.impostor import CLIENT_ID, EC, RSA, Impostor, signed


@pytest.fixture
async def app(sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider) -> AsyncIterator[FastAPI]:
    app = app_with(sqlite_db, clock, acme)
    async with running(app, clock):
        yield app


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with browser_of(app) as browser:
        yield browser


async def assert_nobody_came_in(db: AsyncDatabase, browser: Browser) -> None:
    assert not {name for name in browser.http.cookies if "oauth" not in name}
    async with db.session(read_only=True) as session:
        for model in (User, Session):
            assert await session.scalar(select(func.count()).select_from(model)) == 0


def _b64(value: object) -> str:
    return urlsafe_b64encode(dumps(value).encode()).rstrip(b"=").decode()


def _without_signature(claims: dict[str, Any]) -> str:
    return f"{_b64({'alg': 'none'})}.{_b64(claims)}."


def _with_the_public_key_as_secret(claims: dict[str, Any]) -> str:
    text = f"{_b64({'alg': 'HS256', 'kid': RSA[0].kid})}.{_b64(claims)}"
    mac = hmac.digest(RSA[0].as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _with_a_key_of_its_own(claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048, {"kid": str(RSA[0].kid)})
    header = {"alg": "RS256", "kid": key.kid, "jwk": key.as_dict(private=False), "jku": "https://evil.example/jwks"}
    registry = jws.JWSRegistry(algorithms=["RS256"])
    return jwt.encode(header, claims, key, registry=registry)


def _changed(claims: dict[str, Any]) -> str:
    header, _, signature = signed(claims, RSA[0]).split(".")
    return f"{header}.{_b64({**claims, 'sub': 'admin'})}.{signature}"


def _twice(claims: dict[str, Any]) -> str:
    text = dumps(claims)[:-1] + ', "sub": "admin"}'
    header = {"alg": "RS256", "kid": RSA[0].kid}
    return jws.serialize_compact(header, text.encode(), RSA[0], registry=jws.JWSRegistry(algorithms=["RS256"]))


LIES: dict[str, dict[str, Any]] = {
    "another nonce": {"claims": {"nonce": "another"}},
    "no nonce": {"claims": {"nonce": None}},
    "a nonce that is no text": {"claims": {"nonce": ["x"]}},
    "another audience": {"claims": {"aud": "somebody"}},
    "no audience": {"claims": {"aud": None}},
    "many audiences and no authorized party": {"claims": {"aud": [CLIENT_ID, "somebody"]}},
    "another authorized party": {"claims": {"aud": [CLIENT_ID, "somebody"], "azp": "somebody"}},
    "another issuer": {"claims": {"iss": "https://accounts.google.com"}},
    "no issuer": {"claims": {"iss": None}},
    "an issuer that is no text": {"claims": {"iss": {}}},
    "expired": {"claims": {"exp": int(FakeClock().now().timestamp()) - 61}},
    "no end": {"claims": {"exp": None}},
    "not yet valid": {"claims": {"nbf": int(FakeClock().now().timestamp()) + 61}},
    "issued in the future": {"claims": {"iat": int(FakeClock().now().timestamp()) + 61}},
    "no subject": {"claims": {"sub": None}},
    "an empty subject": {"claims": {"sub": ""}},
    "a number as subject": {"claims": {"sub": 7}},
    "a subject without end": {"claims": {"sub": "x" * 256}},
    "alg none": {"sign": _without_signature},
    "a public key used as a secret": {"sign": _with_the_public_key_as_secret},
    "a key that comes with the token": {"sign": _with_a_key_of_its_own},
    "claims changed after signing": {"sign": _changed},
    "a claim twice": {"sign": _twice},
    "a token of another kind": {"sign": lambda _: "a.b.c.d.e"},
    "no token at all": {"sign": lambda _: ""},
    "a megabyte": {"sign": lambda _: "x" * 900_000},
    "letters of every kind": {"sign": lambda _: "ä.ö.ü"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
async def test_an_id_token_that_lies_lets_nobody_in(
    lie: dict[str, Any], browser: Browser, impostor: Impostor, sqlite_db: AsyncDatabase
) -> None:
    for name, value in lie.items():
        setattr(impostor, name, value)
    answer = await browser.log_in()
    assert_page(answer, 401, "invalid_token")
    await assert_nobody_came_in(sqlite_db, browser)
    async with sqlite_db.session(read_only=True) as session:
        entries = (await session.execute(select(AuditEntry.action, AuditEntry.outcome))).all()
    assert [tuple(entry) for entry in entries] == [("oauth.refused", "failure")]


ANSWERS: dict[str, tuple[dict[str, str | None], int]] = {
    **{
        error: ({"code": None, "error": error}, 403)
        for error in ("access_denied", "user_cancelled_login", "user_cancelled_authorize")
    },
    **{  # RFC 6749, 4.1.2.1; OpenID Connect Core, 3.1.2.6; what GitHub and LinkedIn add to it; and nonsense
        error: ({"code": None, "error": error}, 400)
        for error in (
            "invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope", "server_error",
            "temporarily_unavailable", "interaction_required", "login_required", "account_selection_required",
            "consent_required", "invalid_request_uri", "invalid_request_object", "request_not_supported",
            "request_uri_not_supported", "registration_not_supported", "unmet_authentication_requirements",
            "redirect_uri_mismatch", "application_suspended", "unauthorized_scope_error", "<script>", "", "x\ny",
        )
    },
    "an error without end": ({"code": None, "error": "x" * 200}, 422),
    "an error beside a code": ({"error": "server_error"}, 400),
    "neither code nor error": ({"code": None}, 400),
    "an empty code": ({"code": ""}, 400),
    "another issuer": ({"iss": "https://evil.example"}, 400),
    "no issuer, though it promised one": ({"iss": None}, 400),
    "a code of its own": ({"code": "made-up"}, 400),
    "a code without end": ({"code": "x" * 5000}, 422),
    "no state": ({"state": None}, 422),
    "another state": ({"state": "another"}, 400),
    "a state without end": ({"state": "x" * 5000}, 422),
}  # fmt: skip


@pytest.mark.parametrize(("said", "status"), ANSWERS.values(), ids=list(ANSWERS))
async def test_an_answer_that_is_no_good_code_lets_nobody_in(
    said: dict[str, str | None], status: int, browser: Browser, impostor: Impostor, sqlite_db: AsyncDatabase
) -> None:
    impostor.answer = said
    url = await agree(await browser.begin())
    names = {400: "bad_request", 403: "forbidden", 422: "validation_error"}
    assert_page(await browser.come_back(url), status, names[status])
    await assert_nobody_came_in(sqlite_db, browser)
    impostor.answer = {}
    if "error" in said:  # it was an answer, and used the login up
        assert (await browser.come_back(url)).status_code == (422 if status == 422 else 400)


@pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
async def test_who_is_no_browser_is_answered_with_a_problem(accept: str, browser: Browser, impostor: Impostor) -> None:
    impostor.answer = {"code": None, "error": "access_denied"}
    url = await agree(await browser.begin())
    assert_problem(await browser.http.get(url, headers={"Accept": accept}), 403, "forbidden")
    bare = await browser.http.get("/oauth/callback", headers={"Accept": accept})
    assert assert_problem(bare, 422, "validation_error")["errors"]


async def test_a_browser_is_shown_a_page_wherever_it_goes(browser: Browser, impostor: Impostor) -> None:
    go = browser.come_back
    assert_page(await go("/oauth/callback"), 422, "validation_error")
    unknown = await go("/oauth/authorize?provider=%3Cscript%3Ex%3C/script%3E")
    assert_page(unknown, 404, "not_found")
    assert "&lt;script&gt;x" in unknown.text
    assert_page(await go("/oauth/authorize?provider=acme&next=//evil.example"), 422, "validation_error")
    impostor.token_answer = (500, b"the provider's secret")
    broken = await go(await agree(await browser.begin()))
    assert_page(broken, 502, "upstream_error")
    assert "acme" not in broken.text, "details of failures are kept back"


async def test_what_a_provider_says_is_shown_as_text(browser: Browser, impostor: Impostor) -> None:
    impostor.claims = {"email": "<img src=x>@example.com"}
    answer = await browser.log_in()
    assert_page(answer, 422, "validation_error")


async def test_a_parameter_that_is_sent_twice_is_refused(browser: Browser) -> None:
    url = await agree(await browser.begin())
    for name in ("code", "state", "iss"):
        answer = await browser.come_back(f"{url}&{name}=another")
        assert answer.status_code == 400, name
    assert (await browser.come_back(url)).status_code == 303, "a malformed answer has not used the login up"


TOKEN_ANSWERS: dict[str, tuple[tuple[int, bytes], int]] = {
    "the code is refused": ((400, b'{"error": "invalid_grant"}'), 400),
    "GitHub refuses the code": ((200, b'{"error": "bad_verification_code"}'), 400),
    "we are not known": ((401, b'{"error": "invalid_client"}'), 502),
    "an error that is no text": ((400, b'{"error": {}}'), 502),
    "a failure": ((500, b"oops"), 502),
    "a redirect": ((302, b""), 502),
    "no JSON": ((200, b"<html>"), 502),
    "no object": ((200, b"[]"), 502),
    "nothing in it": ((200, b"{}"), 502),
    "a token of another kind": ((200, b'{"access_token": "a", "token_type": "mac"}'), 502),
    "a token that splits a header": ((200, b'{"access_token": "a\\r\\nx: y", "token_type": "bearer"}'), 502),
    "too much": ((200, b'"' + b"x" * 1_100_000 + b'"'), 502),
    "no ID token": ((200, b'{"access_token": "a", "token_type": "bearer"}'), 401),
}


@pytest.mark.parametrize(("said", "status"), TOKEN_ANSWERS.values(), ids=list(TOKEN_ANSWERS))
async def test_an_exchange_that_fails_lets_nobody_in(
    said: tuple[int, bytes], status: int, browser: Browser, impostor: Impostor, sqlite_db: AsyncDatabase
) -> None:
    impostor.token_answer = said
    answer = await browser.log_in()
    assert answer.status_code == status, answer.text
    await assert_nobody_came_in(sqlite_db, browser)


METADATA: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://evil.example"},
    "no issuer": {"issuer": None},
    "no token endpoint": {"token_endpoint": None},
    "a scheme that is not HTTP": {"authorization_endpoint": "javascript:alert(1)"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
}


@pytest.mark.parametrize("said", METADATA.values(), ids=list(METADATA))
async def test_a_provider_that_describes_itself_wrongly_is_not_gone_to(
    said: dict[str, Any], browser: Browser, impostor: Impostor
) -> None:
    impostor.metadata = said
    answer = await browser.http.get("/oauth/authorize?provider=acme")
    assert answer.status_code == 502
    assert browser.flows == []


async def test_a_description_is_remembered_for_an_hour(browser: Browser, impostor: Impostor, clock: FakeClock) -> None:
    for seconds, calls in ((0, 1), (3599, 1), (1, 2)):
        clock.advance(seconds)
        await browser.begin()
        assert impostor.calls == ["metadata"] * calls


async def test_keys_that_are_rotated_are_found_and_a_forgery_is_looked_up_once_a_minute(
    app: FastAPI, impostor: Impostor, clock: FakeClock
) -> None:
    async def status() -> int:
        async with browser_of(app) as browser:
            return (await browser.log_in()).status_code

    def lookups() -> int:
        return impostor.calls.count("jwks")

    assert await status() == 303
    clock.advance(60)
    impostor.keys = [EC, RSA[0]]
    assert (await status(), lookups()) == (303, 2)
    impostor.sign = lambda claims: signed(claims, RSA[1])
    assert (await status(), await status(), lookups()) == (401, 401, 2)
    clock.advance(60)
    assert (await status(), await status(), lookups()) == (401, 401, 3)
    impostor.keys, impostor.sign = [RSA[0]], lambda claims: signed(claims, EC)
    clock.advance(3600)
    assert (await status(), lookups()) == (401, 4), "a key that is withdrawn is forgotten after an hour"


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda key: {**key, "use": "enc"},
        lambda key: {**key, "kty": "oct", "k": "c2VjcmV0"},
        lambda key: {**key, "n": key["n"][:170]},
        lambda key: {**key, "n": 7},
        lambda key: {"kty": ["RSA"]},
        lambda key: "a key",
    ],
)
async def test_a_key_that_is_not_fit_verifies_nothing(
    spoiled: Callable[[dict[str, Any]], Any], browser: Browser, impostor: Impostor
) -> None:
    impostor.published = [spoiled(RSA[0].as_dict(private=False))]
    assert (await browser.log_in()).status_code == 401


async def test_claims_come_from_userinfo_only_where_it_speaks_of_the_same_user(
    browser: Browser, impostor: Impostor
) -> None:
    impostor.claims = {"email": None, "email_verified": None}
    impostor.userinfo = {"sub": "eve", "email": "ana@example.com", "email_verified": True}
    assert (await browser.log_in()).status_code == 502
    impostor.userinfo = {"sub": "ana", "email": "ana@example.com", "email_verified": True, "iss": "x"}
    assert (await browser.log_in()).status_code == 303


@pytest.mark.parametrize("said", [None, False, "yes", "True", 1.5, []])
async def test_an_address_that_is_not_said_to_be_verified_gets_no_account(
    said: object, browser: Browser, impostor: Impostor, sqlite_db: AsyncDatabase
) -> None:
    impostor.claims = {"email_verified": said}
    assert (await browser.log_in()).status_code == 403
    await assert_nobody_came_in(sqlite_db, browser)


@pytest.mark.parametrize("methods", [None, ["client_secret_post"], ["client_secret_basic", "client_secret_post"]])
async def test_our_secret_goes_where_the_provider_wants_it(
    methods: list[str] | None, browser: Browser, impostor: Impostor
) -> None:
    impostor.metadata = {"token_endpoint_auth_methods_supported": methods}
    assert (await browser.log_in()).status_code == 303
    in_body = methods == ["client_secret_post"]
    assert ("client_secret" in impostor.token_form) is in_body
    assert ("authorization" in impostor.token_headers) is not in_body


async def test_a_provider_that_is_down_is_said_to_be(
    sqlite_db: AsyncDatabase, clock: FakeClock, impostor: Impostor
) -> None:
    gone = OAuthProvider(name="acme", issuer="http://127.0.0.1:9")
    app = app_with(sqlite_db, clock, gone)
    async with running(app, clock), browser_of(app) as browser:
        assert (await browser.http.get("/oauth/authorize?provider=acme")).status_code == 502
