"""What the named providers do differently, each played by the impostor over HTTP; and what an app must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.models import User
from svc_infra.security.oauth import OAuthProvider, github, google, linkedin, microsoft, oidc
from svc_infra.security.oauth.add import add_oauth
from svc_infra.security.oauth.models import OAuthIdentity
from svc_infra.security.oauth.providers import TENANT, Endpoints
from svc_infra.testing import FakeClock
from tests.security.conftest import running
from tests.security.oauth.conftest import Browser, app_with, browser_of
from tests.security.oauth.impostor import Impostor

TENANT_ID = "72f988bf-86f1-41af-91ab-2d7cd011db47"
HTTPS = {"oauth_redirect_url": "https://api.example.com/oauth/callback"}


def moved(provider: OAuthProvider, impostor: Impostor) -> OAuthProvider:
    """The provider, as it would be at the impostor's address."""
    if provider.endpoints is not None:
        at = impostor.issuer
        endpoints = replace(
            provider.endpoints, authorization=f"{at}/authorize", token=f"{at}/token", userinfo=f"{at}/userinfo"
        )
        return replace(provider, endpoints=endpoints, emails_url=f"{at}/emails")
    if TENANT in provider.issuer:
        return replace(
            provider,
            issuer=f"{impostor.issuer}/{TENANT}/v2.0",
            discovery_url=f"{impostor.issuer}/.well-known/openid-configuration",
        )
    return replace(provider, issuer=impostor.issuer)


class Logins:
    """Logs in with a provider that is moved to the impostor's address."""

    def __init__(self, db: AsyncDatabase, clock: FakeClock, impostor: Impostor) -> None:
        self.db, self.clock, self.impostor = db, clock, impostor

    async def status(self, provider: OAuthProvider) -> int:
        app = app_with(self.db, self.clock, moved(provider, self.impostor))
        async with running(app, self.clock), browser_of(app) as browser:
            return (await browser.log_in(provider=provider.name)).status_code

    async def subjects(self) -> list[tuple[str, str]]:
        async with self.db.session(read_only=True) as session:
            return [(one.issuer, one.subject) for one in await session.scalars(select(OAuthIdentity))]


@pytest.fixture
async def logins(sqlite_db: AsyncDatabase, clock: FakeClock, impostor: Impostor, acme: OAuthProvider) -> Logins:
    return Logins(sqlite_db, clock, impostor)


async def test_google_is_an_issuer_like_any_other(logins: Logins) -> None:
    assert await logins.status(google()) == 303


async def test_github_tells_the_address_in_a_list_and_has_no_id_token(logins: Logins) -> None:
    logins.impostor.userinfo = {"id": 583231, "login": "ana", "email": "public@example.com"}
    logins.impostor.emails = [
        {"email": "old@example.com", "primary": False, "verified": True},
        {"email": "ana@example.com", "primary": True, "verified": True},
    ]
    assert await logins.status(github()) == 303
    assert await logins.subjects() == [("https://github.com", "583231")]
    assert logins.impostor.token_form["client_secret"]
    assert "jwks" not in logins.impostor.calls
    async with logins.db.session(read_only=True) as session:
        assert (await session.scalars(select(User.email))).all() == ["ana@example.com"]


@pytest.mark.parametrize(
    ("user", "emails", "status"),
    [
        ({"id": 1}, [{"email": "ana@example.com", "primary": True, "verified": False}], 403),
        ({"id": 1}, [{"email": "ana@example.com", "primary": False, "verified": True}], 403),
        ({"id": 1}, [], 403),
        ({"id": 1}, ["ana@example.com"], 403),
        ({"id": 1}, {"message": "nothing here"}, 403),
        ({"id": None}, [{"email": "ana@example.com", "primary": True, "verified": True}], 502),
        ({"id": True}, [{"email": "ana@example.com", "primary": True, "verified": True}], 502),
        ([], [], 502),
    ],
)
async def test_github_lets_nobody_in_without_an_id_and_a_verified_primary_address(
    user: Any, emails: Any, status: int, logins: Logins
) -> None:
    logins.impostor.userinfo, logins.impostor.emails = user, emails
    assert await logins.status(github()) == status
    assert await logins.subjects() == []


def tenant_claims(impostor: Impostor, **more: object) -> dict[str, object]:
    return {"iss": f"{impostor.issuer}/{TENANT_ID}/v2.0", "tid": TENANT_ID, "xms_edov": True, **more}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 303),
        ({"xms_edov": "1"}, 303),
        ({"xms_edov": None}, 403),
        ({"xms_edov": False}, 403),
        ({"tid": "00000000-0000-0000-0000-000000000000"}, 401),
        ({"tid": None}, 401),
        ({"iss": "http://127.0.0.1/evil/v2.0", "tid": "evil"}, 401),
    ],
)
async def test_microsofts_issuer_is_that_of_the_users_tenant_and_its_addresses_need_a_verified_domain(
    change: Mapping[str, object], status: int, logins: Logins
) -> None:
    impostor = logins.impostor
    impostor.metadata = {
        "issuer": f"{impostor.issuer}/{TENANT}/v2.0", "authorization_response_iss_parameter_supported": None,
    }  # fmt: skip
    impostor.answer = {"iss": None}
    impostor.claims = tenant_claims(impostor, **change)
    assert await logins.status(microsoft()) == status


async def test_linkedin_has_neither_pkce_nor_a_nonce(logins: Logins) -> None:
    logins.impostor.claims = {"nonce": None, "email_verified": "true"}
    assert await logins.status(linkedin()) == 303
    assert "code_verifier" not in logins.impostor.token_form


async def test_a_nonce_that_linkedin_did_send_would_have_to_be_ours(logins: Logins) -> None:
    logins.impostor.claims = {"nonce": "another"}
    assert await logins.status(linkedin()) == 401


async def test_an_issuer_of_our_own_may_be_trusted_with_addresses(logins: Logins) -> None:
    logins.impostor.claims = {"email_verified": None}
    assert await logins.status(oidc("acme", logins.impostor.issuer)) == 403
    assert await logins.status(oidc("acme", logins.impostor.issuer, trust_email=True)) == 303


def test_the_named_providers_are_asked_over_tls() -> None:
    for provider in (google(), github(), linkedin(), microsoft(), microsoft(TENANT_ID, trust_email=True)):
        assert provider.issuer.startswith("https://")
    endpoints = github().endpoints
    assert isinstance(endpoints, Endpoints)
    assert all(url.startswith("https://") for url in (endpoints.authorization, endpoints.token))
    assert microsoft(TENANT_ID).issuer == f"https://login.microsoftonline.com/{TENANT_ID}/v2.0"


@pytest.mark.parametrize(
    "make",
    [
        lambda: microsoft("contoso.com"),
        lambda: microsoft(trust_email=True),
        lambda: oidc("Acme", "https://id.example"),
        lambda: oidc("a b", "https://id.example"),
        lambda: add_oauth(create_app(settings=Settings()), providers=[google(), google()]),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


async def test_outside_local_and_test_an_app_does_not_start_without_a_client(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "a secret of more than thirty-two bytes")
    monkeypatch.delenv("OAUTH_GOOGLE_CLIENT_SECRET")
    with pytest.raises(ConfigurationError, match=r"^OAUTH_GOOGLE_CLIENT_SECRET is not set"):
        async with running(app_with(sqlite_db, clock, google(), env="prod", auth=HTTPS), clock):
            pass


@pytest.mark.parametrize("url", [None, "http://api.example.com/oauth/callback"])
async def test_outside_local_and_test_browsers_come_back_to_one_address_over_tls(
    url: str | None, sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "a secret of more than thirty-two bytes")
    app = app_with(sqlite_db, clock, google(), env="prod", auth={"oauth_redirect_url": url})
    with pytest.raises(ConfigurationError, match="AUTH_OAUTH_REDIRECT_URL"):
        async with running(app, clock):
            pass


async def test_the_configured_address_is_used_whatever_the_host_header_says(
    sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider
) -> None:
    app = app_with(sqlite_db, clock, acme, auth=HTTPS)
    add_oauth(app, providers=[])  # a second call changes nothing
    async with running(app, clock), browser_of(app) as browser:
        asked = parse_qs(urlsplit(await Browser(browser.http).begin()).query)
        assert asked["redirect_uri"] == [HTTPS["oauth_redirect_url"]]


async def test_in_prod_a_provider_without_tls_is_not_gone_to(
    sqlite_db: AsyncDatabase, clock: FakeClock, acme: OAuthProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "a secret of more than thirty-two bytes")
    app = app_with(sqlite_db, clock, acme, env="prod", auth=HTTPS, http_client={"allow_private_addresses": True})
    async with running(app, clock), browser_of(app) as browser:
        answer = await browser.http.get("/oauth/authorize?provider=acme")
        assert answer.status_code == 502, answer.text
