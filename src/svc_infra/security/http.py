"""The room over HTTP: who is calling. What they need to be allowed is in `access.http`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, cast

from fastapi import Depends, Security
from fastapi.openapi.models import APIKey as ApiKeyScheme
from fastapi.openapi.models import HTTPBearer as BearerScheme
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from svc_infra.errors import ConfigurationError, ForbiddenError, InvalidTokenError, UnauthorizedError
from svc_infra.obs import context
from svc_infra.security.access.declared import declares
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, Csrf
from svc_infra.security.keys import ApiKeys
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Sessions
from svc_infra.wiring import wiring_of

T = TypeVar("T")

KEY_HEADER = "X-API-Key"

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing (RFC 9110, 9.2.1), so another site may send them."""

_VERIFIED = "svc_infra.verified"


class _BearerToken(SecurityBase):
    """Reads the access token of a request, or of a WebSocket's handshake."""

    scheme_name = "Bearer"
    model = BearerScheme(bearerFormat="JWT")

    async def __call__(self, connection: HTTPConnection) -> str | None:
        """The token, or None without a credential; a credential of another form is refused, not ignored."""
        sent = connection.headers.getlist("authorization")
        if not sent:
            return None
        scheme, _, token = sent[0].partition(" ")
        if len(sent) > 1 or scheme.lower() != "bearer":
            raise InvalidTokenError("Send one header: `Authorization: Bearer <access token>`.")
        return token.strip()


class _ApiKeyHeader(SecurityBase):
    """Reads the key of a request; one may also be sent as the bearer token."""

    scheme_name = "ApiKey"
    model = ApiKeyScheme(**{"in": "header", "name": KEY_HEADER})

    async def __call__(self, connection: HTTPConnection) -> str | None:
        """The key, or None without one."""
        sent = connection.headers.getlist(KEY_HEADER)
        if len(sent) > 1:
            raise InvalidTokenError(f"Send {KEY_HEADER} once.")
        return sent[0].strip() if sent else None


async def get_optional_user(
    connection: HTTPConnection,
    token: Annotated[str | None, Security(_BearerToken())],
    key: Annotated[str | None, Security(_ApiKeyHeader())],
) -> Principal | None:
    """The caller, a user or a service, or None for a request without a credential.

    Raises:
        UnauthorizedError: There is a credential, and it is neither a valid access token of a live login nor a live key;
            or there are two.
        ForbiddenError: The credential is a cookie, and no page of this app has sent the request.
    """
    if key is not None and token is not None:
        raise InvalidTokenError("Send one credential: a bearer token or an API key.")
    if key is None and token is not None and "." not in token:  # which every access token has
        key = token
    if key is not None:
        return await _by_key(connection, key)
    via: Literal["jwt", "cookie"] = "jwt"
    if token is None:
        token = connection.cookies.get(ACCESS_COOKIE) if "cookie" in connection.headers else None
        if token is None:
            return None
        via = "cookie"
    sessions = shared(connection, Sessions)
    verified_by, principal = connection.scope.get(_VERIFIED, (None, None))
    if verified_by is not sessions:
        principal = await sessions.principal(token, via=via)
        if via == "cookie":
            _refuse_other_sites(connection, principal)
        connection.scope[_VERIFIED] = sessions, principal
    context.current().principal_id = str(principal.id)
    return cast(Principal, principal)


async def _by_key(connection: HTTPConnection, key: str) -> Principal:
    wiring = wiring_of(connection.app)
    if not wiring.has(ApiKeys):
        raise InvalidTokenError("This is no access token, and the service takes no API keys.")
    keys = wiring.get(ApiKeys)
    verified_by, principal = connection.scope.get(_VERIFIED, (None, None))
    if verified_by is not keys:
        principal = await keys.principal(key)
        connection.scope[_VERIFIED] = keys, principal
    here = context.current()
    here.principal_id, here.api_key_id = str(principal.id), str(principal.api_key_id)
    return cast(Principal, principal)


def _refuse_other_sites(connection: HTTPConnection, user: Principal) -> None:
    """A browser sends cookies with whatever another site makes it send (RFC 6265, 8.2)."""
    csrf = shared(connection, Csrf)
    if connection.scope["type"] == "websocket":
        csrf.check_origin(connection.headers)
    elif connection.scope["method"] not in SAFE_METHODS:
        csrf.check(connection.headers, connection.cookies.get(CSRF_COOKIE, ""), user.session_id)


async def identify_user(connection: HTTPConnection) -> Principal | None:
    """As `get_optional_user`, for what runs before a route's own dependencies; the credential is verified once."""
    return await get_optional_user(connection, await _BearerToken()(connection), await _ApiKeyHeader()(connection))


@declares("caller")
async def get_caller(caller: Annotated[Principal | None, Depends(get_optional_user)]) -> Principal:
    """The caller, a user or a service.

    Raises:
        UnauthorizedError: There is no credential, or it is not valid.
    """
    if caller is None:
        raise UnauthorizedError
    return caller


@declares("user")
async def get_current_user(caller: Annotated[Principal | None, Depends(get_optional_user)]) -> Principal:
    """The caller, a user.

    Raises:
        UnauthorizedError: There is no credential, or it is not valid.
        ForbiddenError: The caller is a service.
    """
    if caller is None:
        raise UnauthorizedError
    if caller.is_service:
        raise ForbiddenError("This needs a user, and the key is a service's.")
    return caller


@declares("login")
async def get_login(user: Annotated[Principal, Depends(get_current_user)]) -> Principal:
    """The caller, a user who is logged in.

    Raises:
        UnauthorizedError: There is no credential, or it is not valid.
        ForbiddenError: The credential is a key.
    """
    if user.session_id is None:
        raise ForbiddenError("This needs a login: it cannot be done with a key.")
    return user


Caller = Annotated[Principal, Depends(get_caller)]
Identity = Annotated[Principal, Depends(get_current_user)]
LoggedIn = Annotated[Principal, Depends(get_login)]
OptionalIdentity = Annotated[Principal | None, Depends(get_optional_user)]


def shared(connection: HTTPConnection, kind: type[T]) -> T:
    """Something that this room shares in the app.

    Raises:
        ConfigurationError: The app has no accounts.
    """
    wiring = wiring_of(connection.app)
    if not wiring.has(kind):
        raise ConfigurationError("This app has no accounts: call add_auth_users(app) before it starts.")
    return wiring.get(kind)
