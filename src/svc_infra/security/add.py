"""Wires the room into an app."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from svc_infra.cache import Cache
from svc_infra.config import AuthSettings, Environment
from svc_infra.db.database import AsyncDatabase
from svc_infra.edge.cors import cors
from svc_infra.errors import ConfigurationError
from svc_infra.http import HttpClient
from svc_infra.http.add import add_http
from svc_infra.middleware.http import IdentifiesUser
from svc_infra.security.access import Policy, policy_of
from svc_infra.security.access.add import add_strict_routes
from svc_infra.security.accounts import AccountLinks, Accounts, Credentials, Desk, LoggedMail, MailQueue
from svc_infra.security.accounts.http import accounts_router, keys_router
from svc_infra.security.accounts.schemas import Profile
from svc_infra.security.aliases import aliases_router
from svc_infra.security.audit import AuditTrail
from svc_infra.security.audit.add import add_audit
from svc_infra.security.cipher import FieldCipher, SealedColumns
from svc_infra.security.cookies import Cookies, Csrf
from svc_infra.security.http import identify_user
from svc_infra.security.keyring import KeyRing
from svc_infra.security.lockout import Lockout
from svc_infra.security.models import HasAccount, User
from svc_infra.security.organizations import UserModel
from svc_infra.security.passwords import BreachedPasswords, PasswordHasher, PasswordPolicy
from svc_infra.security.references import check_references
from svc_infra.security.sessions import LiveSessions, SecondFactors, Sessions
from svc_infra.security.tokens import AccessTokens, signing_keys
from svc_infra.types import Clock, SystemClock
from svc_infra.wiring import Part, Wiring, current_wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

KEYS = "keys"
SECOND_FACTORS = "second_factors"
"""The part that says whose login needs a second factor; `add_mfa` adds it."""
_PART = "security"

_log = logging.getLogger(__name__)


def add_auth_users(
    app: FastAPI,
    *,
    prefix: str = "/auth",
    roles: Mapping[str, Collection[str]] | None = None,
    user_model: type[HasAccount] = User,
    profile: type[BaseModel] = Profile,
    aliases: bool = False,
) -> None:
    """Give an app accounts, logins, roles and the routes for them. A second call changes nothing.

    Everything is signed with the secret `AUTH_SECRET`, of at least 32 bytes. To change it, put the old one into
    `AUTH_SECRET_PREVIOUS` for as long as a login lives, and then into `AUTH_SECRETS_RETIRED`, for the audit trail.

    Args:
        app: An app with a database (`add_db`) and, to reach its users, mail (`add_mail`), in any order.
        prefix: Where the routes are.
        roles: The app's own roles and their permissions, as for `register_role`.
        user_model: The app's own users: a mapped class with `HasAccount`. A revision of the app makes its table and
            calls `refer_to_users("<table>")`.
        profile: The fields of it that an owner may read and change, each with a default.
        aliases: Answer under `/users` too, as clients of an earlier generation ask.

    Raises:
        ConfigurationError: A permission is misspelled, or the profile has fields that the users lack or that nobody may
            change freely. At start-up: there is no database, no mail in prod, or `AUTH_SECRET` is missing outside local
            and test, or too short.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    _check_profile(user_model, profile)
    policy = policy_of(wiring)
    for role, permissions in (roles or {}).items():
        policy.add(role, permissions)
    add_audit(app)
    add_security(app)
    add_http(app)
    wiring.add(
        Part(
            _PART,
            run=lambda: _running(wiring, policy, user_model),
            after=("db", KEYS, "audit", "cache", "http", SECOND_FACTORS),
        )
    )
    wiring.provide(IdentifiesUser, identify_user)
    wiring.provide(UserModel, UserModel(user_model))
    accounts = accounts_router(prefix, profile)
    app.include_router(accounts)
    if aliases:
        app.include_router(aliases_router(accounts))
    app.include_router(keys_router())


def add_security(app: FastAPI, *, strict_routes: bool = False) -> None:
    """Give an app keys: signed and sealed cookies, tokens against cross-site requests, encrypted columns.

    `add_auth_users` does this too. A second call changes at most `strict_routes`. Security headers and CORS are the
    edge's, which every app of `create_app` has.

    Args:
        app: The app.
        strict_routes: Start only when every route declares who may call it; see `add_strict_routes`. The setting
            `SECURITY_STRICT_ROUTES` does the same.

    Raises:
        ConfigurationError: At start-up: `AUTH_SECRET` is missing outside local and test, or too short, or a route
            declares nothing.
    """
    wiring = wiring_of(app)
    wiring.add(Part(KEYS, run=lambda: _with_keys(wiring)))
    if strict_routes:
        add_strict_routes(app)


async def purge_sessions(older_than_seconds: float = 30 * 86400.0, limit: int = 1000) -> int:
    """Delete logins that ended longer ago than this, links that are too old, and attempts that are forgotten.

    For a schedule of the app whose job runs here.

    Args:
        older_than_seconds: How long ended logins are kept.
        limit: Most rows of each kind that one call deletes; a login has one for each time that it was refreshed.

    Returns:
        How many rows were deleted.

    Raises:
        ConfigurationError: Nothing runs here, or the app has no accounts.
    """
    wiring = current_wiring()
    if wiring is None:
        raise ConfigurationError("purge_sessions was called outside of any app: use `with wiring.active()`.")
    async with wiring.get(AsyncDatabase).session() as session:
        ended = await wiring.get(Sessions).purge(session, older_than_seconds=older_than_seconds, limit=limit)
        links = await wiring.get(AccountLinks).purge(session, limit=limit)
        return ended + links + await wiring.get(Lockout).purge(session, limit=limit)


@asynccontextmanager
async def _with_keys(wiring: Wiring) -> AsyncIterator[None]:
    keys = KeyRing.read(wiring.settings.secrets)
    wiring.provide(KeyRing, keys)
    cipher = FieldCipher(keys)
    wiring.provide(FieldCipher, cipher)
    wiring.provide(SealedColumns, SealedColumns(cipher))
    wiring.provide(Cookies, Cookies(keys, clock=clock_of(wiring)))
    wiring.provide(Csrf, Csrf(keys, allows=_allowed_origins(wiring)))
    yield


def _allowed_origins(wiring: Wiring) -> Callable[[str], bool]:
    """The pages of other origins that the edge lets send cookies."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None: ...

    rules = cors(nothing, wiring.settings.cors) if wiring.settings.cors.credentials else None
    return rules.is_allowed_origin if rules is not None else lambda _: False


@asynccontextmanager
async def _running(wiring: Wiring, policy: Policy, user_model: type[HasAccount]) -> AsyncIterator[None]:
    settings, clock, keys = wiring.settings.auth, clock_of(wiring), wiring.get(KeyRing)
    is_prod = wiring.settings.environment is Environment.PROD
    db, trail = wiring.get(AsyncDatabase), wiring.get(AuditTrail)
    await check_references(db, user_model)
    tokens = _tokens(wiring, keys)
    second_factors = wiring.get(SecondFactors) if wiring.has(SecondFactors) else None
    live = LiveSessions(
        db,
        user_model,
        second_factors=second_factors,
        cache=token_cache(wiring, settings),
        ttl_seconds=settings.token_cache_seconds,
        clock=clock,
    )
    sessions = Sessions(
        db,
        live,
        trail,
        tokens,
        keys,
        policy,
        second_factors=second_factors,
        user_model=user_model,
        ttl_seconds=settings.refresh_ttl_seconds,
        idle_seconds=settings.refresh_idle_seconds,
        grace_seconds=settings.refresh_grace_seconds,
        clock=clock,
    )
    hasher = _hasher(settings)
    asks = is_prod if settings.breach_check is None else settings.breach_check
    desk = Desk(
        db=db,
        hasher=hasher,
        sessions=sessions,
        lockout=Lockout(db, keys, settings, clock=clock),
        trail=trail,
        policy=PasswordPolicy(words=(wiring.settings.app.name, *settings.password_words)),
        mail=_mail(wiring),
        links=AccountLinks(settings, clock=clock),
        breached=BreachedPasswords(wiring.get(HttpClient), url=settings.breach_check_url) if asks else None,
        user_model=user_model,
        require_verified=is_prod if settings.require_verified is None else settings.require_verified,
        clock=clock,
    )
    accounts = Accounts(desk)
    wiring.provide(AccessTokens, tokens)
    wiring.provide(LiveSessions, live)
    wiring.provide(Sessions, sessions)
    wiring.provide(Lockout, desk.lockout)
    wiring.provide(MailQueue, desk.mail)
    wiring.provide(AccountLinks, desk.links)
    wiring.provide(Accounts, accounts)
    wiring.provide(Credentials, Credentials(desk, accounts))
    try:
        yield
    finally:
        hasher.close()


def _tokens(wiring: Wiring, keys: KeyRing) -> AccessTokens:
    settings = wiring.settings.auth
    return AccessTokens(
        keys,
        issuer=settings.issuer,
        audience=settings.audience,
        ttl_seconds=settings.access_ttl_seconds,
        signing=signing_keys(wiring.settings.secrets.get("AUTH_SIGNING_KEYS")),
        clock=clock_of(wiring),
    )


def _hasher(settings: AuthSettings) -> PasswordHasher:
    return PasswordHasher(
        concurrency=settings.hash_concurrency, memory_kib=settings.hash_memory_kib, passes=settings.hash_passes
    )


def _mail(wiring: Wiring) -> MailQueue:
    if wiring.has(MailQueue):
        return wiring.get(MailQueue)
    if not wiring.settings.environment.is_trusted:
        raise ConfigurationError("Accounts need mail, to verify addresses and reset passwords: call add_mail(app).")
    _log.info("auth.no_mail", extra={"mend": "links are logged; add_mail(app) sends them"})
    return LoggedMail()


def token_cache(wiring: Wiring, settings: AuthSettings) -> Cache | None:
    """The cache, where every process hears of a change through it, or the one process is told that it is alone."""
    if settings.token_cache == "off" or not wiring.has(Cache):  # noqa: S105 - a setting
        return None
    cache = wiring.get(Cache)
    return cache if cache.is_shared or settings.token_cache == "on" else None  # noqa: S105


def clock_of(wiring: Wiring) -> Clock:
    """The app's clock, which only tests replace."""
    return wiring.get(Clock) if wiring.has(Clock) else SystemClock()


def _check_profile(user_model: type[HasAccount], profile: type[BaseModel]) -> None:
    for name, field in profile.model_fields.items():
        if hasattr(HasAccount, name) or not hasattr(user_model, name) or field.is_required():
            raise ConfigurationError(
                f"The profile's {name} must be an attribute of {user_model.__name__}, none of HasAccount's, and have a "
                "default: give add_auth_users a profile= that fits the user model."
            )
