"""Wires API keys into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db import AsyncDatabase
from svc_infra.http import HttpClient
from svc_infra.middleware.gcra import Rate
from svc_infra.security.access import policy_of
from svc_infra.security.accounts import MailQueue
from svc_infra.security.add import clock_of, token_cache
from svc_infra.security.audit import AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.security.keys.form import KeyForm
from svc_infra.security.keys.http import api_keys_router, document_keys
from svc_infra.security.keys.keys import ApiKeys
from svc_infra.security.keys.leaks import LeakedKeys
from svc_infra.security.keys.live import LiveKeys
from svc_infra.security.keys.scanning import GithubReports
from svc_infra.security.keys.uses import KeyUses
from svc_infra.security.organizations import UserModel
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "api_keys"


def add_api_keys(
    app: FastAPI,
    *,
    prefix: str = "/auth/api-keys",
    key_prefix: str = "svc",
    max_rate: str | None = None,
    github_secret_scanning: bool = False,
) -> None:
    """Let programs call an app with keys, in `X-API-Key` or as bearer tokens. A second call changes nothing.

    Args:
        app: An app with accounts (`add_auth_users`), added before or after.
        prefix: Where the routes are.
        key_prefix: What keys begin with, so that scanners find leaked ones: 2 to 16 lower-case letters and digits.
        max_rate: The largest rate, such as `1000/minute`, that who makes a key may give it. Without one only the app's
            own code gives keys a rate, by `ApiKeys.create`.
        github_secret_scanning: Take reports of GitHub's secret scanning at `/leaked/github` below the prefix.

    Raises:
        ConfigurationError: The key prefix is another text, or the rate is none. At start-up: the app has no accounts.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    form, most = KeyForm(key_prefix), Rate.parse(max_rate) if max_rate is not None else None
    app.include_router(api_keys_router(prefix, github_secret_scanning=github_secret_scanning))
    document_keys(app)
    wiring.add(Part(_PART, run=lambda: _running(wiring, form, most), after=("security",)))


@asynccontextmanager
async def _running(wiring: Wiring, form: KeyForm, max_rate: Rate | None) -> AsyncIterator[None]:
    settings, clock, db = wiring.settings.auth, clock_of(wiring), wiring.get(AsyncDatabase)
    cache = token_cache(wiring, settings)
    user_model = wiring.get(UserModel).kind
    live = LiveKeys(db, user_model, cache=cache, ttl_seconds=settings.token_cache_seconds, clock=clock)
    uses = KeyUses(db, clock=clock)
    keys = ApiKeys(
        live,
        uses,
        wiring.get(AuditTrail),
        wiring.get(KeyRing),
        policy_of(wiring),
        form=form,
        max_rate=max_rate,
        clock=clock,
    )
    reports = GithubReports(wiring.get(HttpClient), keys_url=settings.secret_scanning_keys_url, clock=clock)
    wiring.provide(LiveKeys, live)
    wiring.provide(KeyUses, uses)
    wiring.provide(ApiKeys, keys)
    wiring.provide(LeakedKeys, LeakedKeys(db, keys, user_model, wiring.get(MailQueue)))
    wiring.provide(GithubReports, reports)
    async with uses.written():
        yield
