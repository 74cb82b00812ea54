"""Lets an app's users log in with other providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.http import HttpClient
from svc_infra.security.accounts import Accounts, MailQueue
from svc_infra.security.audit import AuditTrail
from svc_infra.security.cookies import Cookies
from svc_infra.security.oauth.client import ProviderClient
from svc_infra.security.oauth.flow import Flows
from svc_infra.security.oauth.http import oauth_router
from svc_infra.security.oauth.link import OAuthIdentities
from svc_infra.security.oauth.login import OAuthLogin
from svc_infra.security.oauth.offers import LinkOffers
from svc_infra.security.oauth.providers import OAuthProvider
from svc_infra.security.organizations import UserModel
from svc_infra.security.sessions import LiveSessions, Sessions
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "oauth"


def add_oauth(app: FastAPI, *, providers: Sequence[OAuthProvider], prefix: str = "/oauth") -> None:
    """Let users log in with other providers. A second call changes nothing.

    Each provider's client is in the secrets `OAUTH_<NAME>_CLIENT_ID` and `OAUTH_<NAME>_CLIENT_SECRET`; the address that
    it sends browsers back to, registered there exactly so, is the setting `AUTH_OAUTH_REDIRECT_URL`.

    Args:
        app: An app with accounts (`add_auth_users`), in any order.
        providers: Such as `google()`, `github()` and `oidc("acme", "https://id.acme.example")`.
        prefix: Where the routes are.

    Raises:
        ConfigurationError: Two providers have one name. At start-up: there are no accounts, or outside local and test a
            client is missing, or `AUTH_OAUTH_REDIRECT_URL` is missing or has no TLS.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    names = [provider.name for provider in providers]
    if len(set(names)) < len(names):
        raise ConfigurationError("Two providers have the same name: give one of them another.")
    wiring.add(Part(_PART, run=lambda: _running(wiring, providers), after=("security",)))
    app.include_router(oauth_router(prefix))


@asynccontextmanager
async def _running(wiring: Wiring, providers: Sequence[OAuthProvider]) -> AsyncIterator[None]:
    settings, trusted = wiring.settings.auth, wiring.settings.environment.is_trusted
    _check_redirect_url(settings.oauth_redirect_url, is_trusted=trusted)
    clock = wiring.get(Clock) if wiring.has(Clock) else SystemClock()
    db = wiring.get(AsyncDatabase)
    ttl_seconds, cookies = settings.oauth_ttl_seconds, wiring.get(Cookies)
    flows = Flows(db, cookies, ttl_seconds=ttl_seconds, clock=clock)
    identities = OAuthIdentities(
        db,
        wiring.get(UserModel).kind,
        wiring.get(Accounts),
        wiring.get(Sessions),
        wiring.get(LiveSessions),
        wiring.get(AuditTrail),
        LinkOffers(cookies, flows, ttl_seconds=ttl_seconds),
        wiring.get(MailQueue),
        keep_tokens=frozenset(provider.name for provider in providers if provider.keep_tokens),
        clock=clock,
    )
    clients = {provider.name: _client(wiring, provider, clock) for provider in providers}
    wiring.provide(OAuthIdentities, identities)
    wiring.provide(
        OAuthLogin, OAuthLogin(clients, flows, identities, next_origins=settings.oauth_next_origins, clock=clock)
    )
    yield


def _client(wiring: Wiring, provider: OAuthProvider, clock: Clock) -> ProviderClient:
    secrets = wiring.settings.secrets
    return ProviderClient(
        provider,
        secrets.require(provider.secret_name("CLIENT_ID"), min_bytes=1).get_secret_value(),
        secrets.require(provider.secret_name("CLIENT_SECRET"), min_bytes=1),
        wiring.get(HttpClient),
        allow_http=wiring.settings.environment.is_trusted,
        clock=clock,
    )


def _check_redirect_url(url: str | None, *, is_trusted: bool) -> None:
    if is_trusted:
        return
    if url is None or urlsplit(url).scheme != "https":
        raise ConfigurationError(
            "AUTH_OAUTH_REDIRECT_URL must be the public https address of the callback, such as "
            "https://api.example.com/oauth/callback."
        )
