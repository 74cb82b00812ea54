"""The `/auth` routes."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, create_model

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession, ReadSession
from svc_infra.errors import NotFoundError, ValidationError
from svc_infra.security.access.http import public
from svc_infra.security.accounts.accounts import Accounts
from svc_infra.security.accounts.credentials import Credentials as CredentialChanges
from svc_infra.security.accounts.email import MAX_EMAIL_CHARACTERS
from svc_infra.security.accounts.links import MAX_LINK_TOKEN_CHARACTERS
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, REFRESH_COOKIE, Csrf
from svc_infra.security.http import Actor, Identity, LoggedIn, shared
from svc_infra.security.passwords import MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS
from svc_infra.security.sessions import Device, Sessions, TokenPair
from svc_infra.security.tokens import AccessTokens

MAX_REFRESH_TOKEN_CHARACTERS = 256
JWKS_SECONDS = 300
"""How long other services may keep the public keys."""

_PUBLIC = [public()]

Email = Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARACTERS, json_schema_extra={"format": "email"})]
Password = Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)]
NewPassword = Annotated[
    SecretStr,
    Field(  # the policy itself says it to a person
        min_length=1, max_length=MAX_PASSWORD_CHARACTERS, json_schema_extra={"minLength": MIN_PASSWORD_CHARACTERS}
    ),
]
LinkToken = Annotated[SecretStr, Field(min_length=1, max_length=MAX_LINK_TOKEN_CHARACTERS)]

_Responses = dict[int | str, dict[str, Any]]
_REFUSED: _Responses = {401: {"description": "What was sent is not valid, or not any more."}}
_BUSY: _Responses = {429: {"description": "Too many passwords are being checked, or this one too often: try again."}}


class Body(BaseModel):
    """What a client sends: nothing but the fields named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Credentials(Body):
    """An e-mail address and a password."""

    email: Email
    password: Password


class NewCredentials(Credentials):
    """An e-mail address and a password for a new account."""

    password: NewPassword


class Login(Credentials):
    """An e-mail address and a password, and where the tokens go."""

    cookies: bool = Field(False, description="For browsers: put the tokens into cookies that no script can read.")


class RefreshBody(Body):
    """The refresh token that was given last; with cookies it is left out."""

    refresh_token: Annotated[str, Field(min_length=1, max_length=MAX_REFRESH_TOKEN_CHARACTERS)] | None = None


class EmailOnly(Body):
    """An address."""

    email: Email


class Link(Body):
    """What a mailed link carries behind the `#`."""

    token: LinkToken


class Reset(Link):
    """A mailed link, and the password to have from now on."""

    password: NewPassword


class Proof(Body):
    """The account's password, to prove again whose it is."""

    password: Password


class PasswordChange(Body):
    """The password until now, and the one from now on."""

    current_password: Password
    new_password: NewPassword


class EmailChange(Proof):
    """The account's password, and its next address."""

    new_email: Email


class Disable(Proof):
    """The account's password, and why the account is given up."""

    reason: Annotated[str, Field(max_length=200)] = ""


class Tokens(BaseModel):
    """What a client needs to stay logged in (RFC 6749, 5.1)."""

    access_token: str
    refresh_token: str
    token_type: str = "bearer"  # noqa: S105 - not a secret
    expires_in: int = Field(description="Seconds that the access token is good for.")


class CookieTokens(BaseModel):
    """What a page needs whose tokens are in cookies."""

    token_type: Literal["cookie"] = "cookie"  # noqa: S105 - not a secret
    csrf_token: str = Field(description="Goes into the header X-CSRF-Token of every request that changes something.")
    expires_in: int = Field(description="Seconds until the page must refresh.")


class Profile(Body):
    """What an account says about its owner: what the owner may change without proving anything."""

    full_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class Registered(BaseModel):
    """A new account."""

    id: UUID
    email: str
    roles: list[str] = []


class Account(Registered):
    """An account as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    is_verified: bool


class Session(BaseModel):
    """One login of the account."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_agent: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    current: bool = False


def accounts_router(prefix: str, profile: type[BaseModel] = Profile) -> APIRouter:
    """The routes of accounts.

    Args:
        prefix: Where they are.
        profile: The fields that an owner may change, each with a default.
    """
    router = APIRouter(prefix=prefix, tags=["auth"])
    _add_logins(router)
    _add_links(router)
    _add_changes(router)
    _add_profile(router, profile)
    _add_sessions(router)
    return router


def keys_router() -> APIRouter:
    """Where other services find the public keys of access tokens (RFC 8414, RFC 7517)."""
    router = APIRouter(tags=["auth"])

    @router.get("/.well-known/jwks.json", dependencies=_PUBLIC)
    async def keys(request: Request, response: Response) -> dict[str, Any]:
        """The public keys that access tokens are signed with; none where they are signed with a secret."""
        response.headers["Cache-Control"] = f"public, max-age={JWKS_SECONDS}"
        return shared(request, AccessTokens).jwks()

    return router


def _add_logins(router: APIRouter) -> None:
    @router.post("/register", status_code=201, responses=_BUSY, dependencies=_PUBLIC)
    async def register(body: NewCredentials, request: Request) -> Registered:
        """Make an account. The answer does not tell whether the address has one already; its mailbox does."""
        user_id, address = await _accounts(request).sign_up(email=body.email, password=body.password.get_secret_value())
        return Registered(id=user_id, email=address)

    @router.post("/login", responses=_REFUSED | _BUSY, dependencies=_PUBLIC)
    async def login(body: Login, request: Request, response: Response) -> Tokens | CookieTokens:
        """Exchange an e-mail address and a password for tokens."""
        if body.cookies:
            shared(request, Csrf).check_origin(request.headers)
        pair = await _accounts(request).login(
            email=body.email, password=body.password.get_secret_value(), device=device_of(request)
        )
        return given_as_cookies(pair, request, response) if body.cookies else given(pair, response)

    @router.post("/refresh", responses=_REFUSED, dependencies=_PUBLIC)
    async def refresh(request: Request, response: Response, body: RefreshBody | None = None) -> Tokens | CookieTokens:
        """Exchange a refresh token, once, for new tokens."""
        token, cookies = body.refresh_token if body is not None else None, False
        if token is None:
            token, cookies = request.cookies.get(REFRESH_COOKIE), True
            if token is None:
                detail = "Send the refresh token."
                raise ValidationError(detail, errors=[{"pointer": "#/refresh_token", "detail": detail}])
            shared(request, Csrf).check(request.headers, request.cookies.get(CSRF_COOKIE, ""))
        pair = await shared(request, Sessions).refresh(token)
        return given_as_cookies(pair, request, response) if cookies else given(pair, response)

    @router.post("/logout", status_code=204)
    async def logout(request: Request, response: Response, user: Actor, session: DbSession) -> None:
        """End this login: its access and refresh tokens are refused from now on."""
        if user.session_id is not None:
            await shared(request, Sessions).revoke(session, user.session_id, reason="logout")
        _forget_cookies(request, response)

    @router.post("/logout-all", status_code=204)
    async def logout_all(request: Request, response: Response, user: Actor, session: DbSession) -> None:
        """End every login of the account."""
        await shared(request, Sessions).revoke_all(session, user.id, reason="logout_all")
        _forget_cookies(request, response)


def _add_links(router: APIRouter) -> None:
    @router.post("/verify/request", status_code=202, dependencies=_PUBLIC)
    async def ask_verification(body: EmailOnly, request: Request) -> None:
        """Mail the link again that proves an address, if it has an account that needs it."""
        await _changes(request).ask_verification(body.email)

    @router.post("/verify", status_code=204, responses=_REFUSED, dependencies=_PUBLIC)
    async def verify(body: Link, request: Request) -> None:
        """Prove an address with the link that was mailed to it."""
        await _changes(request).verify(body.token.get_secret_value())

    @router.post("/forgot-password", status_code=202, dependencies=_PUBLIC)
    async def forgot_password(body: EmailOnly, request: Request) -> None:
        """Mail a link for a new password, if the address has an account."""
        await _changes(request).ask_reset(body.email)

    @router.post("/reset-password", status_code=204, responses=_REFUSED | _BUSY, dependencies=_PUBLIC)
    async def reset_password(body: Reset, request: Request) -> None:
        """Replace a forgotten password, and end every login of the account."""
        await _changes(request).reset_password(body.token.get_secret_value(), body.password.get_secret_value())

    @router.post("/email/confirm", status_code=204, responses=_REFUSED, dependencies=_PUBLIC)
    async def confirm_email(body: Link, request: Request) -> None:
        """Make the address, to which the link was mailed, the account's own."""
        await _changes(request).change_email(body.token.get_secret_value())

    @router.post("/unlock", status_code=204, responses=_REFUSED, dependencies=_PUBLIC)
    async def unlock(body: Link, request: Request) -> None:
        """Let an account be tried again that was locked after too many failed attempts."""
        await _changes(request).unlock(body.token.get_secret_value())


def _add_changes(router: APIRouter) -> None:
    @router.post("/password", status_code=204, responses=_BUSY)
    async def change_password(body: PasswordChange, request: Request, user: LoggedIn) -> None:
        """Change the password, and end the account's other logins."""
        await _changes(request).change_password(
            user.id,
            current=body.current_password.get_secret_value(),
            new=body.new_password.get_secret_value(),
            keep=user.session_id,
            ip=device_of(request).ip,
        )

    @router.post("/email", status_code=202, responses=_BUSY)
    async def change_email(body: EmailChange, request: Request, user: LoggedIn) -> None:
        """Ask for another address; a link is mailed to it."""
        await _changes(request).ask_email_change(
            user.id, password=body.password.get_secret_value(), new_email=body.new_email, ip=device_of(request).ip
        )

    @router.post("/disable", status_code=204, responses=_BUSY)
    async def disable(body: Disable, request: Request, response: Response, user: LoggedIn) -> None:
        """Give the account up: nobody can use it until an administrator enables it."""
        accounts = _accounts(request)
        await accounts.reauthenticate(user.id, body.password.get_secret_value(), ip=device_of(request).ip)
        async with shared(request, AsyncDatabase).session() as session:
            await accounts.disable(session, user.id, reason=body.reason or "by its owner")
        _forget_cookies(request, response)


def _add_profile(router: APIRouter, profile: type[BaseModel]) -> None:
    fields: Mapping[str, Any] = {name: (field.annotation, field) for name, field in profile.model_fields.items()}
    shown: Any = create_model("Account", __base__=Account, __doc__=Account.__doc__, **fields)

    @router.get("/me", response_model=shown)
    async def me(request: Request, user: Identity, session: ReadSession) -> Any:
        """The account that is logged in."""
        return shown.model_validate(await _accounts(request).get(session, user.id))

    @router.patch("/me", response_model=shown)
    async def update_me(body: profile, request: Request, user: LoggedIn, session: DbSession) -> Any:  # type: ignore[valid-type]
        """Change what the account says about its owner; fields that are left out stay as they are."""
        values = body.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
        return shown.model_validate(await _accounts(request).update_profile(session, user.id, values))

    @router.delete("/me", status_code=204, responses=_BUSY)
    async def delete_me(body: Proof, request: Request, response: Response, user: LoggedIn) -> None:
        """Delete the account and everything that belongs to it alone."""
        accounts = _accounts(request)
        await accounts.reauthenticate(user.id, body.password.get_secret_value(), ip=device_of(request).ip)
        async with shared(request, AsyncDatabase).session() as session:
            await accounts.delete(session, user.id)
        _forget_cookies(request, response)


def _add_sessions(router: APIRouter) -> None:
    @router.get("/sessions")
    async def sessions(request: Request, user: LoggedIn, session: ReadSession) -> list[Session]:
        """The logins of the account that are alive, the one that was seen last first."""
        alive = [Session.model_validate(one) for one in await shared(request, Sessions).list(session, user.id)]
        return [one.model_copy(update={"current": one.id == user.session_id}) for one in alive]

    @router.post("/sessions/revoke-others", status_code=204)
    async def revoke_others(request: Request, user: LoggedIn, session: DbSession) -> None:
        """End every login of the account but this one."""
        await shared(request, Sessions).revoke_all(session, user.id, reason="revoked", keep=user.session_id)

    @router.delete("/sessions/{session_id:uuid}", status_code=204)
    async def revoke(session_id: UUID, request: Request, user: LoggedIn, session: DbSession) -> None:
        """End one login of the account."""
        if not await shared(request, Sessions).revoke(session, session_id, reason="revoked", user_id=user.id):
            raise NotFoundError("Session", session_id)


def given(pair: TokenPair, response: Response) -> Tokens:
    """The answer to a login whose client keeps the tokens."""
    response.headers["Cache-Control"] = "no-store"
    return Tokens(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in_seconds)


def given_as_cookies(pair: TokenPair, request: Request, response: Response) -> CookieTokens:
    """The answer to a login whose client is a browser that keeps the tokens in cookies."""
    response.headers["Cache-Control"] = "no-store"
    token = shared(request, Csrf).token(pair.session_id)
    for name, value, seconds, same_site in (
        (ACCESS_COOKIE, pair.access_token, pair.expires_in_seconds, "lax"),
        (REFRESH_COOKIE, pair.refresh_token, pair.session_ends_in_seconds, "strict"),
        (CSRF_COOKIE, token, pair.session_ends_in_seconds, "strict"),
    ):
        set_cookie(response, name, value, seconds, same_site)
    return CookieTokens(csrf_token=token, expires_in=pair.expires_in_seconds)


def _forget_cookies(request: Request, response: Response) -> None:
    for name in (ACCESS_COOKIE, REFRESH_COOKIE, CSRF_COOKIE):
        if name in request.cookies:
            set_cookie(response, name, "", 0, "strict")


def set_cookie(response: Response, name: str, value: str, seconds: int, same_site: Any) -> None:
    """`__Host-`: of this host alone, over https alone (browsers take localhost for that), for every path."""
    response.set_cookie(
        name, value, max_age=seconds, path="/", secure=True, httponly=name != CSRF_COOKIE, samesite=same_site
    )


def device_of(request: Request) -> Device:
    """Where a request comes from."""
    return Device(
        user_agent=request.headers.get("user-agent", ""), ip=request.client.host if request.client is not None else ""
    )


def _accounts(request: Request) -> Accounts:
    return shared(request, Accounts)


def _changes(request: Request) -> CredentialChanges:
    return shared(request, CredentialChanges)
