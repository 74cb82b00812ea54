"""The room over HTTP: who is calling, and what they need to be allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, TypeVar, cast

from fastapi import Security, params
from fastapi.openapi.models import HTTPBearer as BearerScheme
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from svc_infra.errors import ConfigurationError, ForbiddenError, InvalidTokenError, UnauthorizedError
from svc_infra.obs import context
from svc_infra.security._policy import check_permission_name
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, Csrf
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Sessions
from svc_infra.wiring import wiring_of

T = TypeVar("T")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing (RFC 9110, 9.2.1), so another site may send them."""

_VERIFIED = "svc_infra.verified"


class _Caller(SecurityBase):
    """Finds the caller of a request, or of a WebSocket's handshake; one dependency, because each costs its share."""

    scheme_name = "Bearer"
    model = BearerScheme(bearerFormat="JWT")

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        """The caller, or None for a request without a credential.

        Raises:
            UnauthorizedError: There is a credential, and it is not a valid access token of a live login.
            ForbiddenError: The credential is a cookie, and no page of this app has sent the request.
        """
        return await identify_user(connection)


class _LoggedIn(_Caller):
    async def __call__(self, connection: HTTPConnection) -> Principal:
        """The caller.

        Raises:
            UnauthorizedError: There is no credential, or it is not a valid access token of a live login.
            ForbiddenError: The credential is a cookie, and no page of this app has sent the request.
        """
        user = await identify_user(connection)
        if user is None:
            raise UnauthorizedError
        return user


get_optional_user = _Caller()
get_current_user = _LoggedIn()


async def identify_user(connection: HTTPConnection) -> Principal | None:
    """As `get_optional_user`, for what runs before a route's own dependencies; the token is verified once."""
    via: Literal["jwt", "cookie"] = "jwt"
    token = _bearer_token(connection.scope["headers"])
    if token is None:
        token, via = connection.cookies.get(ACCESS_COOKIE), "cookie"
        if token is None:
            return None
    sessions = shared(connection, Sessions)
    verified_by, principal = connection.scope.get(_VERIFIED, (None, None))
    if verified_by is not sessions:
        principal = await sessions.principal(token, via=via)
        if via == "cookie":
            _refuse_other_sites(connection, principal)
        connection.scope[_VERIFIED] = sessions, principal
    context.current().principal_id = str(principal.id)
    return cast(Principal, principal)


def _bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The access token, or None without one; a credential of another form is refused, not ignored."""
    sent = [value for name, value in headers if name == b"authorization"]
    if not sent:
        return None
    scheme, _, token = sent[0].decode("latin-1").partition(" ")
    if len(sent) > 1 or scheme.lower() != "bearer":
        raise InvalidTokenError("Send one header: `Authorization: Bearer <access token>`.")
    return token.strip()


def _refuse_other_sites(connection: HTTPConnection, user: Principal) -> None:
    """A browser sends cookies with whatever another site makes it send (RFC 6265, 8.2)."""
    csrf = shared(connection, Csrf)
    if connection.scope["type"] == "websocket":
        csrf.check_origin(connection.headers)
    elif connection.scope["method"] not in SAFE_METHODS:
        csrf.check(connection.headers, connection.cookies.get(CSRF_COOKIE, ""), user.session_id)


Identity = Annotated[Principal, Security(get_current_user)]
OptionalIdentity = Annotated[Principal | None, Security(get_optional_user)]


def RequireUser() -> params.Depends:  # noqa: N802 - reads like the type that it stands for
    """A dependency that refuses who is not logged in (401)."""
    return params.Depends(get_current_user)


def RequireRoles(*roles: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses who does not have all of these roles (403)."""
    return _require(roles, "role", lambda user: user.roles)


def RequirePermission(*permissions: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses who does not hold all of these permissions (403).

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    for permission in permissions:
        check_permission_name(permission)
    return _require(permissions, "permission", lambda user: filter(user.may, permissions))


def _require(names: tuple[str, ...], kind: str, held: Callable[[Principal], Iterable[str]]) -> params.Depends:
    if not names:
        raise ConfigurationError(f"A route requires no {kind} at all: name one.")

    async def check(user: Identity) -> None:
        missing = sorted(set(names).difference(held(user)))
        if missing:
            raise ForbiddenError(f"This needs the {kind} {', '.join(missing)}.")

    return params.Depends(check)


def shared(connection: HTTPConnection, kind: type[T]) -> T:
    """Something that this room shares in the app.

    Raises:
        ConfigurationError: The app has no accounts.
    """
    wiring = wiring_of(connection.app)
    if not wiring.has(kind):
        raise ConfigurationError("This app has no accounts: call add_auth_users(app) before it starts.")
    return wiring.get(kind)
