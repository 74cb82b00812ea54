"""The `/auth/mfa` routes."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response, Security
from fastapi.requests import HTTPConnection

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession, ReadSession
from svc_infra.route_policy import declares
from svc_infra.security.access.http import check_fresh, public
from svc_infra.security.accounts import ProvesFactors
from svc_infra.security.accounts.http import device_of, given, given_as_cookies, proof_in, set_cookie
from svc_infra.security.accounts.schemas import CodeProof, CookieTokens, Tokens
from svc_infra.security.cookies import SECOND_STEP_COOKIE, Csrf
from svc_infra.security.http import LimitedLogin, LoggedIn, PrivateRoute, shared
from svc_infra.security.methods import MULTIPLE, not_proven_enough
from svc_infra.security.mfa.enrolment import Enrolled, Enrolment
from svc_infra.security.mfa.factors import Factors
from svc_infra.security.mfa.login import FactorLogin
from svc_infra.security.mfa.passkeys import CEREMONY_SECONDS
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.mfa.schemas import (
    EnrolledShown,
    FactorShown,
    Named,
    NewPasskeyBody,
    NewTotpBody,
    Overview,
    PasskeyLogin,
    PasskeyLoginOptions,
    PasskeyOptions,
    RecoveryCodesShown,
    Step,
    StepWithCode,
    StepWithCredential,
    TotpShown,
)
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import SecondFactors

_PUBLIC = [public()]
_REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"description": "What was sent is not valid, or not any more."},
    403: {"description": "A page of another origin has sent it."},
}
_BUSY: dict[int | str, dict[str, Any]] = {429: {"description": "Too many failed attempts: try again later."}}
_WRONG: dict[int | str, dict[str, Any]] = {
    400: {"description": "The code is wrong, or too late."},
    409: {"description": "The account has this factor already, or too many."},
}
_KEPT: dict[int | str, dict[str, Any]] = {409: {"description": "The account cannot be without this factor."}}
_FULL: dict[int | str, dict[str, Any]] = {409: {"description": "The account has too many factors."}}


@declares("login proven a moment ago, by a factor of the account")
async def fresh_owner(connection: HTTPConnection, user: LimitedLogin) -> Principal:
    """Whoever may change the factors of their account.

    Raises:
        StaleAuthenticationError: The login is not fresh, or lacks the factors that the account has: a password alone
            shall not replace them.
    """
    check_fresh(connection, user)
    if MULTIPLE not in user.methods:
        async with shared(connection, AsyncDatabase).session(read_only=True) as session:
            if await shared(connection, Factors).has_strong(session, user.id):
                raise not_proven_enough()
    return user


FreshOwner = Annotated[Principal, Security(fresh_owner)]


def mfa_router(prefix: str) -> APIRouter:
    """The routes of second factors.

    Args:
        prefix: Where they are.
    """
    router = APIRouter(prefix=prefix, tags=["auth"], route_class=PrivateRoute)
    _add_steps(router)
    _add_passkey_logins(router)
    _add_proofs(router)
    _add_factors(router)
    _add_totp(router)
    _add_passkeys(router)
    _add_email(router)
    return router


def _add_steps(router: APIRouter) -> None:
    @router.post("/verify", responses=_REFUSED | _BUSY, dependencies=_PUBLIC)
    async def verify(
        body: StepWithCode | StepWithCredential, request: Request, response: Response
    ) -> Tokens | CookieTokens:
        """End the second step of a login with a code or a passkey: the answer is that of a login."""
        if _browser_secret(request) is not None:
            shared(request, Csrf).check_origin(request.headers)
        pair, in_cookies = await _login(request).verify(
            body.mfa_token, proof_in(body), device_of(request), browser_secret=_browser_secret(request)
        )
        if not in_cookies:
            return given(pair)
        set_cookie(response, SECOND_STEP_COOKIE, "", 0, "strict")
        return given_as_cookies(pair, request, response)

    @router.post("/options", responses=_REFUSED, dependencies=_PUBLIC)
    async def options(body: Step, request: Request) -> PasskeyOptions:
        """Ask one of the account's passkeys in the second step of a login."""
        secret = _browser_secret(request)
        return PasskeyOptions(public_key=await _login(request).step_options(body.mfa_token, browser_secret=secret))

    @router.post("/email/send", status_code=202, responses=_REFUSED, dependencies=_PUBLIC)
    async def send_code(body: Step, request: Request) -> None:
        """Mail a code for the second step of a login, if the account has enrolled its address."""
        await _login(request).send_step_code(body.mfa_token, browser_secret=_browser_secret(request))


def _add_passkey_logins(router: APIRouter) -> None:
    @router.post("/passkeys/login/options", responses=_REFUSED, dependencies=_PUBLIC)
    async def begin(body: PasskeyLoginOptions, request: Request, response: Response) -> PasskeyOptions:
        """Begin a login without a password; the authenticator says whose it is."""
        if body.cookies:
            shared(request, Csrf).check_origin(request.headers)
        public_key, secret = await _login(request).passkey_options(in_browser=body.cookies)
        if secret is not None:
            set_cookie(response, SECOND_STEP_COOKIE, secret, int(CEREMONY_SECONDS), "strict")
        return PasskeyOptions(public_key=public_key)

    @router.post("/passkeys/login", responses=_REFUSED | _BUSY, dependencies=_PUBLIC)
    async def end(body: PasskeyLogin, request: Request, response: Response) -> Tokens | CookieTokens:
        """End a login without a password."""
        if body.cookies:
            shared(request, Csrf).check_origin(request.headers)
        pair = await _login(request).passkey_login(
            body.credential.model_dump(),
            device_of(request, keeps_cookies=body.cookies),
            browser_secret=_browser_secret(request),
        )
        if not body.cookies:
            return given(pair)
        set_cookie(response, SECOND_STEP_COOKIE, "", 0, "strict")
        return given_as_cookies(pair, request, response)


def _add_proofs(router: APIRouter) -> None:
    """What is asked for before `POST /auth/reauthenticate`, which the accounts have."""

    @router.post("/reauthenticate/options")
    async def options(request: Request, user: LimitedLogin) -> PasskeyOptions:
        """Ask one of the account's passkeys to prove this login again."""
        public_key = await _login(request).proof_options(user.id, _session_id(user))
        return PasskeyOptions(public_key=public_key)

    @router.post("/reauthenticate/email", status_code=202)
    async def send_code(request: Request, user: LimitedLogin) -> None:
        """Mail a code to prove this login again, if the account has enrolled its address."""
        await _login(request).send_proof_code(user.id, _session_id(user))


def _add_factors(router: APIRouter) -> None:
    @router.get("")
    async def overview(request: Request, user: LimitedLogin, session: ReadSession) -> Overview:
        """The second factors of the account."""
        return Overview(
            factors=[FactorShown.model_validate(one) for one in await _factors(request).list(session, user.id)],
            recovery_codes_left=await shared(request, RecoveryCodes).left(session, user.id),
            required=user.lacks_second_factor
            or await shared(request, SecondFactors).is_required(session, user.id, user.roles),
        )

    @router.patch("/factors/{factor_id:uuid}")
    async def rename(factor_id: UUID, body: Named, request: Request, user: LoggedIn, session: DbSession) -> FactorShown:
        """Call a factor something else."""
        return FactorShown.model_validate(await _factors(request).rename(session, user.id, factor_id, body.name))

    @router.delete("/factors/{factor_id:uuid}", status_code=204, responses=_KEPT)
    async def remove(factor_id: UUID, request: Request, user: FreshOwner, session: DbSession) -> None:
        """Take a factor from the account; the login must be a fresh one."""
        await _factors(request).remove(session, user.id, factor_id)

    @router.post("/recovery-codes", responses={409: {"description": "The account has no factor yet."}})
    async def new_codes(request: Request, user: FreshOwner) -> RecoveryCodesShown:
        """Make new recovery codes; those before them end. The login must be a fresh one."""
        return RecoveryCodesShown(codes=await _enrolment(request).new_recovery_codes(user.id))


def _add_totp(router: APIRouter) -> None:
    @router.post("/totp", status_code=201, responses=_FULL)
    async def begin(body: NewTotpBody, request: Request, user: FreshOwner) -> TotpShown:
        """Begin to enrol an authenticator app; the login must be a fresh one."""
        new = await _enrolment(request).begin_totp(user.id, body.name)
        return TotpShown(id=new.id, secret=new.secret, otpauth_uri=new.uri, qr_svg=new.qr_svg)

    @router.post("/totp/{factor_id:uuid}/confirm", responses=_WRONG)
    async def confirm(factor_id: UUID, body: CodeProof, request: Request, user: FreshOwner) -> EnrolledShown:
        """Enrol an authenticator app with its first code."""
        code = body.code.get_secret_value()
        return _shown(await _enrolment(request).confirm_totp(user.id, _session_id(user), factor_id, code))


def _add_passkeys(router: APIRouter) -> None:
    @router.post("/passkeys/options", responses=_FULL)
    async def options(request: Request, user: FreshOwner) -> PasskeyOptions:
        """Begin to enrol a passkey; the login must be a fresh one."""
        return PasskeyOptions(public_key=await _enrolment(request).passkey_options(user.id, _session_id(user)))

    @router.post("/passkeys", status_code=201, responses=_WRONG)
    async def add(body: NewPasskeyBody, request: Request, user: FreshOwner) -> EnrolledShown:
        """Enrol a passkey that the browser has made for this login."""
        credential = body.credential.model_dump()
        return _shown(await _enrolment(request).add_passkey(user.id, _session_id(user), credential, body.name))


def _add_email(router: APIRouter) -> None:
    @router.post("/email", status_code=202, responses=_FULL)
    async def begin(request: Request, user: FreshOwner) -> None:
        """Begin to enrol the account's address, by a code that is mailed to it; the login must be a fresh one."""
        await _enrolment(request).send_email_code(user.id, _session_id(user))

    @router.post("/email/confirm", responses=_WRONG)
    async def confirm(body: CodeProof, request: Request, user: FreshOwner) -> EnrolledShown:
        """Enrol the account's address with the code."""
        code = body.code.get_secret_value()
        return _shown(await _enrolment(request).confirm_email(user.id, _session_id(user), code))


def _shown(enrolled: Enrolled) -> EnrolledShown:
    return EnrolledShown(factor=FactorShown.model_validate(enrolled.factor), recovery_codes=enrolled.recovery_codes)


def _browser_secret(request: Request) -> str | None:
    return request.cookies.get(SECOND_STEP_COOKIE)


def _session_id(user: Principal) -> UUID:
    assert user.session_id is not None  # noqa: S101 - what a login is
    return user.session_id


def _login(request: Request) -> FactorLogin:
    login = shared(request, ProvesFactors)
    assert isinstance(login, FactorLogin)  # noqa: S101 - what add_mfa shares
    return login


def _factors(request: Request) -> Factors:
    return shared(request, Factors)


def _enrolment(request: Request) -> Enrolment:
    return shared(request, Enrolment)
