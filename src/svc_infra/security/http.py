"""The room over HTTP: who is calling, what they need to be allowed, and the `/auth` routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response, Security, params
from fastapi.openapi.models import HTTPBearer as BearerScheme
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from svc_infra.db.http import DbSession
from svc_infra.errors import ConfigurationError, ForbiddenError, InvalidTokenError, UnauthorizedError
from svc_infra.obs import context
from svc_infra.security._policy import check_permission_name
from svc_infra.security.accounts import MAX_EMAIL_CHARACTERS, Accounts
from svc_infra.security.passwords import MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Device, Sessions, TokenPair
from svc_infra.wiring import wiring_of

T = TypeVar("T")

MAX_REFRESH_TOKEN_CHARACTERS = 256

_REFUSED: dict[int | str, dict[str, Any]] = {401: {"description": "What was sent is not valid, or not any more."}}
_BUSY: dict[int | str, dict[str, Any]] = {429: {"description": "Too many passwords are being checked: try again."}}

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


async def get_optional_user(
    connection: HTTPConnection, token: Annotated[str | None, Security(_BearerToken())]
) -> Principal | None:
    """The caller, or None for a request without a credential.

    Raises:
        UnauthorizedError: There is a credential, and it is not a valid access token of a live login.
    """
    if token is None:
        return None
    sessions = _sessions(connection)
    verified_by, principal = connection.scope.get(_VERIFIED, (None, None))
    if verified_by is not sessions:
        principal = await sessions.principal(token)
        connection.scope[_VERIFIED] = sessions, principal
    context.current().principal_id = str(principal.id)
    return cast(Principal, principal)


async def identify_user(connection: HTTPConnection) -> Principal | None:
    """As `get_optional_user`, for what runs before a route's own dependencies; the token is verified once."""
    return await get_optional_user(connection, await _BearerToken()(connection))


async def get_current_user(user: Annotated[Principal | None, Depends(get_optional_user)]) -> Principal:
    """The caller.

    Raises:
        UnauthorizedError: There is no credential, or it is not a valid access token of a live login.
    """
    if user is None:
        raise UnauthorizedError
    return user


Identity = Annotated[Principal, Depends(get_current_user)]
OptionalIdentity = Annotated[Principal | None, Depends(get_optional_user)]


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


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Credentials(_Body):
    """An e-mail address and a password."""

    email: Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARACTERS, json_schema_extra={"format": "email"})]
    password: Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)]


class NewCredentials(Credentials):
    """An e-mail address and a password for a new account."""

    password: Annotated[
        SecretStr,
        Field(  # the policy itself says it to a person
            min_length=1, max_length=MAX_PASSWORD_CHARACTERS, json_schema_extra={"minLength": MIN_PASSWORD_CHARACTERS}
        ),
    ]


class RefreshBody(_Body):
    """The refresh token that was given last."""

    refresh_token: Annotated[str, Field(min_length=1, max_length=MAX_REFRESH_TOKEN_CHARACTERS)]


class Tokens(BaseModel):
    """What a client needs to stay logged in (RFC 6749, 5.1)."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - not a secret
    expires_in: int = Field(description="Seconds that the access token is good for.")


class Account(BaseModel):
    """An account as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    roles: list[str]


def auth_router(prefix: str) -> APIRouter:
    """The routes of the room."""
    router = APIRouter(prefix=prefix, tags=["auth"])

    @router.post("/register", status_code=201, responses=_BUSY)
    async def register(body: NewCredentials, request: Request, session: DbSession) -> Account:
        """Make an account."""
        user = await _accounts(request).register(session, email=body.email, password=body.password.get_secret_value())
        return Account.model_validate(user)

    @router.post("/login", responses=_REFUSED | _BUSY)
    async def login(body: Credentials, request: Request, response: Response) -> Tokens:
        """Exchange an e-mail address and a password for tokens."""
        pair = await _accounts(request).login(
            email=body.email, password=body.password.get_secret_value(), device=_device(request)
        )
        return _tokens(pair, response)

    @router.post("/refresh", responses=_REFUSED)
    async def refresh(body: RefreshBody, request: Request, response: Response) -> Tokens:
        """Exchange a refresh token, once, for new tokens."""
        return _tokens(await _sessions(request).refresh(body.refresh_token), response)

    @router.post("/logout", status_code=204)
    async def logout(request: Request, user: Identity, session: DbSession) -> None:
        """End this login: its access and refresh tokens are refused from now on."""
        if user.session_id is not None:
            await _sessions(request).revoke(session, user.session_id, reason="logout")

    @router.get("/me")
    async def me(user: Identity) -> Account:
        """The account that is logged in."""
        return Account(id=user.id, email=user.email, roles=sorted(user.roles))

    return router


def _tokens(pair: TokenPair, response: Response) -> Tokens:
    response.headers["Cache-Control"] = "no-store"
    return Tokens(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in_seconds)


def _device(request: Request) -> Device:
    return Device(
        user_agent=request.headers.get("user-agent", ""), ip=request.client.host if request.client is not None else ""
    )


def _accounts(connection: HTTPConnection) -> Accounts:
    return _shared(connection, Accounts)


def _sessions(connection: HTTPConnection) -> Sessions:
    return _shared(connection, Sessions)


def _shared(connection: HTTPConnection, kind: type[T]) -> T:
    wiring = wiring_of(connection.app)
    if not wiring.has(kind):
        raise ConfigurationError("This app has no accounts: call add_auth_users(app) before it starts.")
    return wiring.get(kind)
