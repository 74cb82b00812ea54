"""The `/auth` routes."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, create_model

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession, ReadSession
from svc_infra.errors import InvalidCredentialsError, NotFoundError, ValidationError
from svc_infra.security.access.http import public
from svc_infra.security.accounts.accounts import Accounts
from svc_infra.security.accounts.credentials import Credentials as CredentialChanges
from svc_infra.security.accounts.proof import FactorProof, ProvesFactors
from svc_infra.security.accounts.schemas import (
    Account,
    CodeProof,
    CookieTokens,
    CredentialProof,
    Disable,
    EmailChange,
    EmailOnly,
    Link,
    Login,
    NewCredentials,
    PasswordChange,
    Profile,
    Proof,
    Reauthentication,
    RefreshBody,
    Registered,
    RenewedCookie,
    RenewedToken,
    Reset,
    SecondStepNeeded,
    Session,
    Tokens,
)
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, REFRESH_COOKIE, SECOND_STEP_COOKIE, Csrf
from svc_infra.security.http import Actor, Identity, Leaving, LimitedLogin, LoggedIn, PrivateRoute, shared
from svc_infra.security.methods import PASSWORD
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Device, Renewed, SecondStep, Sessions, TokenPair
from svc_infra.security.tokens import AccessTokens
from svc_infra.wiring import wiring_of

JWKS_SECONDS = 300
"""How long other services may keep the public keys."""

_PUBLIC = [public()]

_Responses = dict[int | str, dict[str, Any]]
_REFUSED: _Responses = {401: {"description": "What was sent is not valid, or not any more."}}
SECOND_STEP: _Responses = {202: {"model": SecondStepNeeded, "description": "A second factor is needed."}}
_BUSY: _Responses = {429: {"description": "Too many passwords are being checked, or this one too often: try again."}}


def accounts_router(prefix: str, profile: type[BaseModel] = Profile) -> APIRouter:
    """The routes of accounts.

    Args:
        prefix: Where they are.
        profile: The fields that an owner may change, each with a default.
    """
    router = APIRouter(prefix=prefix, tags=["auth"], route_class=PrivateRoute)
    _add_logins(router)
    _add_links(router)
    _add_changes(router)
    _add_proof(router)
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

    @router.post(
        "/login", response_model=Tokens | CookieTokens, responses=SECOND_STEP | _REFUSED | _BUSY, dependencies=_PUBLIC
    )
    async def login(body: Login, request: Request, response: Response) -> Tokens | CookieTokens | Response:
        """Exchange an e-mail address and a password for tokens, or for a second step (202)."""
        if body.cookies:
            shared(request, Csrf).check_origin(request.headers)
        device = device_of(request, keeps_cookies=body.cookies)
        outcome = await _accounts(request).login(
            email=body.email, password=body.password.get_secret_value(), device=device
        )
        return answered(outcome, request, response, device=device)

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
        return given_as_cookies(pair, request, response) if cookies else given(pair)

    @router.post("/logout", status_code=204)
    async def logout(request: Request, response: Response, user: Leaving, session: DbSession) -> None:
        """End this login: its access and refresh tokens are refused from now on."""
        if user.session_id is not None:
            await shared(request, Sessions).revoke(session, user.session_id, reason="logout")
        _forget(user, request, response)

    @router.post("/logout-all", status_code=204)
    async def logout_all(request: Request, response: Response, user: Actor, session: DbSession) -> None:
        """End every login of the account."""
        await shared(request, Sessions).revoke_all(session, user.id, reason="logout_all")
        _forget(user, request, response)


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
            await accounts.give_up(session, user.id, reason=body.reason or "by its owner")
        _forget(user, request, response)


def _add_proof(router: APIRouter) -> None:
    @router.post("/reauthenticate", responses=_REFUSED | _BUSY)
    async def reauthenticate(
        body: Reauthentication, request: Request, response: Response, user: LimitedLogin
    ) -> RenewedToken | RenewedCookie:
        """Prove again who is logged in, by the password or another factor; this login is fresh for a while then."""
        device, sessions = device_of(request), shared(request, Sessions)
        assert user.session_id is not None  # noqa: S101 - what a login is
        if isinstance(body, Proof):
            await _accounts(request).reauthenticate(user.id, body.password.get_secret_value(), ip=device.ip)
            async with shared(request, AsyncDatabase).session() as session:
                renewed = await sessions.renew(session, user.session_id, methods=(PASSWORD,))
        elif wiring_of(request.app).has(ProvesFactors):
            proof = proof_in(body)
            renewed = await shared(request, ProvesFactors).reauthenticate(user.id, user.session_id, proof, device)
        else:
            raise InvalidCredentialsError("This account has a password only.")
        return _renewed(renewed, user.via == "cookie", response)


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
        _forget(user, request, response)


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


def answered(
    outcome: TokenPair | SecondStep, request: Request, response: Response, *, device: Device
) -> Tokens | CookieTokens | Response:
    """The answer to a login, or to its first step."""
    if isinstance(outcome, TokenPair):
        return given_as_cookies(outcome, request, response) if device.keeps_cookies else given(outcome)
    needed = SecondStepNeeded(
        mfa_token=outcome.token, methods=list(outcome.methods), expires_in=outcome.expires_in_seconds
    )
    return bound_to_browser(JSONResponse(needed.model_dump(), 202), outcome)


def bound_to_browser(response: Response, step: SecondStep) -> Response:
    """Let only the browser that gets this answer take the second step."""
    if step.browser_secret is not None:
        set_cookie(response, SECOND_STEP_COOKIE, step.browser_secret, step.expires_in_seconds, "strict")
    return response


def proof_in(body: CodeProof | CredentialProof) -> FactorProof:
    """What a request proves."""
    if isinstance(body, CodeProof):
        return FactorProof(code=body.code.get_secret_value())
    return FactorProof(credential=body.credential.model_dump())


def _renewed(renewed: Renewed, in_cookie: bool, response: Response) -> RenewedToken | RenewedCookie:
    if in_cookie:
        set_cookie(response, ACCESS_COOKIE, renewed.access_token, renewed.expires_in_seconds, "lax")
        return RenewedCookie(expires_in=renewed.expires_in_seconds)
    return RenewedToken(access_token=renewed.access_token, expires_in=renewed.expires_in_seconds)


def given(pair: TokenPair) -> Tokens:
    """The answer to a login whose client keeps the tokens."""
    return Tokens(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in_seconds)


def given_as_cookies(pair: TokenPair, request: Request, response: Response) -> CookieTokens:
    """The answer to a login whose client is a browser that keeps the tokens in cookies."""
    token = shared(request, Csrf).token(pair.session_id)
    for name, value, seconds, same_site in (
        (ACCESS_COOKIE, pair.access_token, pair.expires_in_seconds, "lax"),
        (REFRESH_COOKIE, pair.refresh_token, pair.session_ends_in_seconds, "strict"),
        (CSRF_COOKIE, token, pair.session_ends_in_seconds, "strict"),
    ):
        set_cookie(response, name, value, seconds, same_site)
    return CookieTokens(csrf_token=token, expires_in=pair.expires_in_seconds)


def _forget(user: Principal, request: Request, response: Response) -> None:
    """Have the browser whose login has ended forget its cookies, and what `AUTH_CLEAR_SITE_DATA` says beside that."""
    if user.via != "cookie":
        return
    for name in (ACCESS_COOKIE, REFRESH_COOKIE, CSRF_COOKIE):
        set_cookie(response, name, "", 0, "strict")
    kinds = wiring_of(request.app).settings.auth.clear_site_data
    if kinds != ("off",):
        response.headers["Clear-Site-Data"] = ", ".join(f'"{kind}"' for kind in kinds)


def set_cookie(response: Response, name: str, value: str, seconds: int, same_site: Any) -> None:
    """`__Host-`: of this host alone, over https alone (browsers take localhost for that), for every path."""
    response.set_cookie(
        name, value, max_age=seconds, path="/", secure=True, httponly=name != CSRF_COOKIE, samesite=same_site
    )


def device_of(request: Request, *, keeps_cookies: bool = False) -> Device:
    """Where a request comes from."""
    return Device(
        user_agent=request.headers.get("user-agent", ""),
        ip=request.client.host if request.client is not None else "",
        keeps_cookies=keeps_cookies,
        held_token=request.cookies.get(REFRESH_COOKIE, ""),
    )


def _accounts(request: Request) -> Accounts:
    return shared(request, Accounts)


def _changes(request: Request) -> CredentialChanges:
    return shared(request, CredentialChanges)
