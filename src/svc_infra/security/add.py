"""Wires the room into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db.database import AsyncDatabase
from svc_infra.middleware.http import IdentifiesUser
from svc_infra.security._policy import Policy
from svc_infra.security.accounts import Accounts
from svc_infra.security.http import auth_router, identify_user
from svc_infra.security.keyring import KeyRing
from svc_infra.security.passwords import PasswordHasher
from svc_infra.security.sessions import Sessions
from svc_infra.security.tokens import AccessTokens
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_auth_users(app: FastAPI, *, prefix: str = "/auth", roles: Mapping[str, Collection[str]] | None = None) -> None:
    """Give an app accounts, logins, roles and the routes for them. A second call changes nothing.

    The signing key is the secret `AUTH_SECRET`, of at least 32 bytes. To change it, put the old one into
    `AUTH_SECRET_PREVIOUS` for as long as an access token lives.

    Args:
        app: An app with a database (`add_db`).
        prefix: Where the routes are.
        roles: The app's own roles and their permissions; naming a built-in role adds to it.

    Raises:
        ConfigurationError: A permission is misspelled. At start-up: there is no database, or `AUTH_SECRET` is missing
            outside local and test, or too short.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    policy = Policy(roles)
    wiring.add(Part(_PART, run=lambda: _running(wiring, policy), after=("db",)))
    wiring.provide(IdentifiesUser, identify_user)
    app.include_router(auth_router(prefix))


_PART = "security"


@asynccontextmanager
async def _running(wiring: Wiring, policy: Policy) -> AsyncIterator[None]:
    settings = wiring.settings.auth
    secrets = wiring.settings.secrets
    previous = secrets.get("AUTH_SECRET_PREVIOUS")
    keys = KeyRing(secrets.require("AUTH_SECRET"), *([previous] if previous is not None else []))
    clock = wiring.get(Clock) if wiring.has(Clock) else SystemClock()
    db = wiring.get(AsyncDatabase)
    tokens = AccessTokens(
        keys,
        issuer=settings.issuer,
        audience=settings.audience,
        ttl_seconds=settings.access_ttl_seconds,
        clock=clock,
    )
    sessions = Sessions(
        db,
        tokens,
        keys,
        policy,
        ttl_seconds=settings.refresh_ttl_seconds,
        grace_seconds=settings.refresh_grace_seconds,
        clock=clock,
    )
    hasher = PasswordHasher(concurrency=settings.hash_concurrency)
    wiring.provide(Sessions, sessions)
    wiring.provide(Accounts, Accounts(db, hasher, sessions, clock=clock))
    try:
        yield
    finally:
        hasher.close()
