"""Wires the room into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from svc_infra.admin.http import console_router
from svc_infra.admin.impersonation import ImpersonationNotice, Impersonations, Targets, Terms, UserGetter
from svc_infra.admin.impersonation.http import ActingAs, impersonation_router
from svc_infra.config import AdminSettings, Settings
from svc_infra.config.secrets import MIN_BYTES
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.access import policy_of
from svc_infra.security.add import clock_of
from svc_infra.security.audit import AuditTrail
from svc_infra.security.cookies import Cookies
from svc_infra.security.http import ActsAs
from svc_infra.security.keyring import KeyRing
from svc_infra.security.organizations import UserModel
from svc_infra.security.sessions import Sessions
from svc_infra.wiring import Part, Wiring, current_wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "admin"
_SECRET = AdminSettings.optional_secrets[0]
_FALLBACK = "APP_SECRET"


def add_admin(
    app: FastAPI,
    base_path: str = "/admin",
    enable_impersonation: bool = True,
    secret: str | None = None,
    ttl_seconds: int | None = None,
    cookie_name: str | None = None,
    impersonation_user_getter: UserGetter | None = None,
    *,
    read_only: bool = False,
) -> None:
    """Give an app's operators routes for its users, and let admins act as them. A second call changes nothing.

    Args:
        app: An app with accounts (`add_auth_users`), added before or after.
        base_path: Where the routes are.
        enable_impersonation: Whether admins may act as users at all.
        secret: Signs the cookie; by default the secret `ADMIN_IMPERSONATION_SECRET`, or else `APP_SECRET`.
        ttl_seconds: How long an impersonation lasts, at most 3600; by default `ADMIN_IMPERSONATION_TTL`, which is 900.
        cookie_name: By default `ADMIN_IMPERSONATION_COOKIE`, which is `impersonation`.
        impersonation_user_getter: `(request, user_id) -> user`, where the users are not the app's accounts.
        read_only: Whether nothing can ever be changed as another user.

    Raises:
        ConfigurationError: The time or the cookie's name is not acceptable. At start-up: the app has no accounts, or
            the secret is missing outside local and test, or too short.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    given = {"impersonation_ttl": ttl_seconds, "impersonation_cookie": cookie_name}
    settings = wiring.settings.admin
    chosen = AdminSettings(**{**settings.model_dump(), **{key: one for key, one in given.items() if one is not None}})
    terms = Terms(chosen.impersonation_cookie, chosen.impersonation_ttl, read_only)
    app.include_router(console_router(base_path))
    if enable_impersonation:
        acting = ActingAs(wiring, terms)
        wiring.provide(ActsAs, acting)
        app.include_router(impersonation_router(base_path, acting, wiring))
        app.add_middleware(ImpersonationNotice)
    impersonates = (terms, secret, impersonation_user_getter) if enable_impersonation else None
    wiring.add(Part(_PART, run=lambda: _running(wiring, impersonates), after=("security", "api_keys", "mfa")))


async def end_expired_impersonations() -> int:
    """Record the end of impersonations whose time is over and that nobody has stopped.

    For a schedule of the app whose job runs here. Without one it is recorded when the app starts, when the next
    impersonation begins, and before anybody searches the audit trail below `/admin`.

    Returns:
        How many.

    Raises:
        ConfigurationError: Nothing runs here, or the app has no impersonation.
    """
    wiring = current_wiring()
    if wiring is None:
        raise ConfigurationError("end_expired_impersonations was called outside of any app: use `wiring.active()`.")
    async with wiring.get(AsyncDatabase).session() as session:
        return await wiring.get(Impersonations).end_expired(session)


@asynccontextmanager
async def _running(
    wiring: Wiring, impersonates: tuple[Terms, str | None, UserGetter | None] | None
) -> AsyncIterator[None]:
    sessions = wiring.get(Sessions)
    if impersonates is None:
        yield
        return
    terms, secret, getter = impersonates
    clock, db = clock_of(wiring), wiring.get(AsyncDatabase)
    impersonations = Impersonations(
        db,
        wiring.get(AuditTrail),
        policy_of(wiring),
        Cookies(cookie_keys(wiring.settings, secret), clock=clock),
        terms,
        clock=clock,
    )
    wiring.provide(Targets, Targets(db, wiring.get(UserModel).kind, getter))
    wiring.provide(Impersonations, impersonations)
    sessions.on_end(impersonations.logins_ended)
    async with db.session() as session:
        await impersonations.end_expired(session)
    yield


def cookie_keys(settings: Settings, given: str | None = None) -> KeyRing:
    """What the cookie is signed with: the secret that was given, `ADMIN_IMPERSONATION_SECRET`, or `APP_SECRET`.

    Raises:
        MissingSecretError: There is none, outside local and test.
        ConfigurationError: It is too short, outside local and test.
    """
    secrets = settings.secrets
    if given is not None:
        if len(given.encode()) < (1 if settings.environment.is_trusted else MIN_BYTES):
            raise ConfigurationError(f"The secret of add_admin is shorter than {MIN_BYTES} bytes: set {_SECRET}.")
        return KeyRing(SecretStr(given))
    is_elsewhere = secrets.get(_SECRET) is None and secrets.get(_FALLBACK) is not None
    return KeyRing.read(secrets, _FALLBACK if is_elsewhere else _SECRET)
