"""The `/oauth` routes."""

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from svc_infra.db.http import DbSession, ReadSession
from svc_infra.errors import BadRequestError, ForbiddenError, SvcInfraError, ValidationError
from svc_infra.obs import context
from svc_infra.security.access import declares
from svc_infra.security.access.http import public
from svc_infra.security.accounts.http import (
    SECOND_STEP,
    answered,
    bound_to_browser,
    device_of,
    given_as_cookies,
    set_cookie,
)
from svc_infra.security.accounts.schemas import Body, Tokens
from svc_infra.security.http import Identity, PrivateRoute, shared
from svc_infra.security.oauth.flow import MAX_NEXT_CHARACTERS, MAX_STATE_CHARACTERS
from svc_infra.security.oauth.link import OAuthIdentities
from svc_infra.security.oauth.login import Begun, Ended, OAuthLogin
from svc_infra.security.oauth.offers import MAX_OFFER_CHARACTERS
from svc_infra.security.oauth.page import error_page
from svc_infra.security.sessions import Device, TokenPair
from svc_infra.wiring import wiring_of

MAX_CODE_CHARACTERS = 4096
MAX_ISSUER_CHARACTERS = 512
MAX_ERROR_CHARACTERS = 128

Next = Annotated[str, Field(max_length=MAX_NEXT_CHARACTERS, description="Where to go afterwards.")]
Provider = Annotated[str, Field(max_length=32)]


class Started(BaseModel):
    """A login with a provider that has begun: send the browser there."""

    authorization_url: str
    state: str


class LinkBody(Body):
    """The provider whose identity is to be linked, and where to go afterwards."""

    provider: Provider
    next: Next = "/"


class OfferBody(Body):
    """What the mailed link carries behind the `#`."""

    token: Annotated[SecretStr, Field(min_length=1, max_length=MAX_OFFER_CHARACTERS)]


class Linked(BaseModel):
    """Who the account is elsewhere."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    provider: str
    email: str | None
    created_at: datetime
    last_login_at: datetime | None


class PersonRoute(PrivateRoute):
    """A route that a person's browser goes to: a refusal is shown there as a page, and to others as a problem."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except (SvcInfraError, RequestValidationError) as error:
                if not _is_browser(request):
                    raise
                malformed = ValidationError("This address is not complete: start the login again.")
                refusal = error if isinstance(error, SvcInfraError) else malformed
                page = error_page(refusal, context.current().request_id)
                return _private(HTMLResponse(page, refusal.status, refusal.headers))

        return answer


@declares("mailed link in the browser of the login")
async def _possession() -> None: ...


def oauth_router(prefix: str) -> APIRouter:
    """The routes of logins with providers.

    Args:
        prefix: Where they are.
    """
    router = APIRouter(tags=["auth"], route_class=PrivateRoute)
    browsed = APIRouter(tags=["auth"], route_class=PersonRoute, dependencies=[public()])
    _add_logins(browsed, prefix)
    _add_identities(router, prefix)
    whole = APIRouter(prefix=prefix)
    whole.include_router(browsed)
    whole.include_router(router)
    return whole


def _add_logins(router: APIRouter, prefix: str) -> None:
    @router.get("/providers")
    async def providers(request: Request) -> list[str]:
        """The names of the providers that one can log in with."""
        return shared(request, OAuthLogin).providers

    @router.get("/authorize", response_model=Started, responses={303: {"description": "To the provider."}, 404: {}})
    async def authorize(
        request: Request,
        provider: Provider,
        next: Next = "/",  # noqa: A002 - the parameter's name
    ) -> Response:
        """Begin a login: a browser is sent to the provider, any other client is told where to send it."""
        begun = await shared(request, OAuthLogin).begin(
            provider, redirect_uri=_redirect_uri(request, prefix), next_page=next, cookies=request.cookies
        )
        if _is_browser(request):
            return _with_cookie(RedirectResponse(begun.url, 303), begun, request)
        return _with_cookie(JSONResponse(_started(begun).model_dump()), begun, request)

    @router.get(
        "/callback",
        response_model=Tokens,
        responses=SECOND_STEP | {303: {"description": "To the page that the login began with."}},
    )
    async def callback(
        request: Request,
        state: Annotated[str, Query(max_length=MAX_STATE_CHARACTERS)],
        code: Annotated[str | None, Query(max_length=MAX_CODE_CHARACTERS)] = None,
        error: Annotated[str | None, Query(max_length=MAX_ERROR_CHARACTERS)] = None,
        iss: Annotated[str | None, Query(max_length=MAX_ISSUER_CHARACTERS)] = None,
    ) -> Response:
        """End a login: a browser gets cookies and is sent on, any other client gets tokens (none after a link)."""
        for name in ("state", "code", "error", "iss"):
            if len(request.query_params.getlist(name)) > 1:  # RFC 6749, 3.1
                raise BadRequestError(f"The parameter {name} was sent more than once.")
        device = device_of(request, keeps_cookies=_is_browser(request))
        ended = await shared(request, OAuthLogin).end(
            state=state, code=code, error=error, issuer=iss, cookies=request.cookies, device=device
        )
        response = _ended(ended, request, device)
        set_cookie(response, ended.flow.cookie_name, "", 0, "lax")
        return _private(response)


def _add_identities(router: APIRouter, prefix: str) -> None:
    @router.get("/identities")
    async def identities(request: Request, user: Identity, session: ReadSession) -> list[Linked]:
        """Who the account is elsewhere."""
        return [Linked.model_validate(one) for one in await _identities(request).list(session, user.id)]

    @router.post("/identities", response_model=Started, responses={404: {}})
    async def link(body: LinkBody, request: Request, user: Identity, session: ReadSession) -> Response:
        """Begin to link an identity to the account that is logged in; the login must be a fresh one."""
        if user.session_id is None:
            raise ForbiddenError("Only a login can do this.")
        await _identities(request).fresh_owner(session, user.id, user.session_id, lock=False)
        begun = await shared(request, OAuthLogin).begin(
            body.provider,
            redirect_uri=_redirect_uri(request, prefix),
            next_page=body.next,
            cookies=request.cookies,
            links_to=(user.id, user.session_id),
        )
        return _with_cookie(JSONResponse(_started(begun).model_dump()), begun, request)

    @router.post("/identities/offered", status_code=204, dependencies=[Depends(_possession)])
    async def take_offer(body: OfferBody, request: Request) -> None:
        """Link the identity that this browser has proven to the account that was mailed this link."""
        await _identities(request).take_offer(body.token.get_secret_value(), request.cookies)

    @router.delete("/identities/{identity_id:uuid}", status_code=204)
    async def unlink(identity_id: UUID, request: Request, user: Identity, session: DbSession) -> None:
        """Take an identity from the account that is logged in, freshly, unless there is no other way to log in."""
        await _identities(request).unlink(session, user.id, user.session_id, identity_id)


def _ended(ended: Ended, request: Request, device: Device) -> Response:
    there = RedirectResponse(ended.flow.next, 303)
    outcome = ended.outcome
    if outcome is None:
        return there if device.keeps_cookies else Response(status_code=204)
    if not device.keeps_cookies:
        answer = answered(outcome, request, there, device=device)
        return answer if isinstance(answer, Response) else JSONResponse(answer.model_dump())
    if isinstance(outcome, TokenPair):
        given_as_cookies(outcome, request, there)
        return there
    # Behind the `#`, where neither a server's log nor another page sees it.
    asked = {"mfa_token": outcome.token, "methods": ",".join(outcome.methods), "next": ended.flow.next}
    page = wiring_of(request.app).settings.mfa.page_url
    return bound_to_browser(RedirectResponse(f"{page}#{urlencode(asked)}", 303), outcome)


def _is_browser(request: Request) -> bool:
    """Whether a browser goes there, rather than a page's script or another client asking for data."""
    return "text/html" in request.headers.get("accept", "")


def _redirect_uri(request: Request, prefix: str) -> str:
    """The same for every request, but on a developer's machine, where nobody else sends a Host header."""
    configured = wiring_of(request.app).settings.auth.oauth_redirect_url
    return configured or f"{str(request.base_url).rstrip('/')}{prefix}/callback"


def _started(begun: Begun) -> Started:
    return Started(authorization_url=begun.url, state=begun.flow.state)


def _with_cookie(response: Response, begun: Begun, request: Request) -> Response:
    seconds = int(wiring_of(request.app).settings.auth.oauth_ttl_seconds)
    for name in begun.superfluous:
        set_cookie(response, name, "", 0, "lax")
    # Lax: the way back from the provider is a navigation from another site.
    set_cookie(response, begun.flow.cookie_name, begun.cookie, seconds, "lax")
    return _private(response)


def _private(response: Response) -> Response:
    """Kept by no cache, and told to no page that comes after it."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Vary"] = "Accept"
    return response


def _identities(request: Request) -> OAuthIdentities:
    return shared(request, OAuthIdentities)
