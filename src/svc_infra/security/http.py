"""The room over HTTP: who is calling, and answers that nobody keeps. What is allowed to whom is in `access.http`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

from fastapi import Request, Response, Security
from fastapi.openapi.models import HTTPBearer as BearerScheme
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from svc_infra.errors import (
    ConfigurationError,
    ForbiddenError,
    InvalidTokenError,
    SecondFactorRequiredError,
    UnauthorizedError,
)
from svc_infra.middleware._limiter import KEY_RATE
from svc_infra.obs import context
from svc_infra.security.cookies import ACCESS_COOKIE, CSRF_COOKIE, REFRESH_COOKIE, Csrf
from svc_infra.security.keys import ApiKeys
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import SecondFactors, Sessions
from svc_infra.wiring import wiring_of

T = TypeVar("T")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing (RFC 9110, 9.2.1), so another site may send them."""

_VERIFIED = "svc_infra.verified"


class PrivateRoute(APIRoute):
    """A route whose answers no cache keeps, the browser's included, unless they say something else themselves.

    Every route of the rooms that know people is one: `APIRouter(route_class=PrivateRoute)`. Refusals are never kept.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            response = await handler(request)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer


class ActsAs(Protocol):
    """Knows as whom a login acts; the room that lets admins act as users provides it."""

    async def __call__(self, connection: HTTPConnection, holder: Principal) -> Principal:
        """The user as whom the login of this request acts, or the holder himself.

        Raises:
            ForbiddenError: It may not do this as another user, or not act as that user any more.
        """
        ...


class _Optional(SecurityBase):
    """The caller in one step: FastAPI spends more on each dependency than all of this costs."""

    scheme_name = "Bearer"
    model = BearerScheme(bearerFormat="JWT")

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        """The caller, a user or a service, or None for a request without a credential.

        Raises:
            UnauthorizedError: There is a credential, and it is neither a valid access token of a live login nor a live
                key; or there are two.
            ForbiddenError: The credential is a cookie, and no page of this app has sent the request.
            SecondFactorRequiredError: The account must have a second factor, and the login was not proven with one.
        """
        caller = await identify_user(connection)
        if caller is not None:
            self.check_factors(connection, caller)
        return caller

    def check_factors(self, connection: HTTPConnection, caller: Principal) -> None:
        """Refuse a login that lacks the second factor that its account must have."""
        if caller.lacks_second_factor:
            refusal = SecondFactorRequiredError()
            refusal.members["enrol_url"] = wiring_of(connection.app).get(SecondFactors).enrol_url
            raise refusal


class _Caller(_Optional):
    route_policy = "caller"

    async def __call__(self, connection: HTTPConnection) -> Principal:
        """The caller, a user or a service.

        Raises:
            UnauthorizedError: There is no credential, or it is not valid.
            ForbiddenError: The caller is another one than the route wants, or as for a cookie.
            SecondFactorRequiredError: As for `get_optional_user`.
        """
        caller = await identify_user(connection)
        if caller is None:
            raise UnauthorizedError
        self.check_factors(connection, caller)
        self.check(caller)
        return caller

    def check(self, caller: Principal) -> None:
        """Refuse the caller of another kind."""


class _User(_Caller):
    route_policy = "user"

    def check(self, caller: Principal) -> None:
        """Refuse services."""
        if caller.is_service:
            raise ForbiddenError("This needs a user, and the key is a service's.")


class _Login(_Caller):
    route_policy = "login"

    def check(self, caller: Principal) -> None:
        """Refuse keys, and admins who act as the user."""
        if caller.actor is not None:
            raise ForbiddenError("Only the user can do this, and you act as them: stop that first.")
        if caller.session_id is None:
            raise ForbiddenError("This needs a login: it cannot be done with a key.")


class _LimitedLogin(_Login):
    """Any login, also one that lacks its second factor: only for what proves one, enrols one, or ends the login."""

    route_policy = "login, also without its second factor"

    def check_factors(self, connection: HTTPConnection, caller: Principal) -> None:
        """Let it pass."""


class _Actor(_LimitedLogin):
    route_policy = "login, also while acting as a user"

    async def __call__(self, connection: HTTPConnection) -> Principal:
        """Whose login it is, also while they act as another user: only for what ends that, or the login.

        Raises:
            UnauthorizedError, ForbiddenError: As for `get_login`.
        """
        holder = await identify_holder(connection)
        if holder is None:
            raise UnauthorizedError
        self.check(holder)
        return holder


class _Leaving(_Actor):
    """Whoever's cookies these are, also when the short-lived one is over: nobody must log in to be logged out."""

    route_policy = "login, or the cookies of one"

    async def __call__(self, connection: HTTPConnection) -> Principal:
        """Whose login it is, alive or not where only its refresh token is left.

        Raises:
            UnauthorizedError, ForbiddenError: As for `get_login`.
        """
        try:
            return await super().__call__(connection)
        except UnauthorizedError:
            token = connection.cookies.get(REFRESH_COOKIE)
            if token is None or "authorization" in connection.headers:
                raise
            holder = await shared(connection, Sessions).holder(token)
            if holder is None:
                raise
            _refuse_other_sites(connection, holder)
            context.current().principal_id = str(holder.id)
            return holder


get_optional_user = _Optional()
get_caller = _Caller()
get_current_user = _User()
get_login = _Login()
get_limited_login = _LimitedLogin()
get_actor = _Actor()
get_leaving = _Leaving()


async def identify_user(connection: HTTPConnection) -> Principal | None:
    """Who is calling, for what runs before a route's own dependencies; the credential is verified once.

    What the caller may do is not decided here: `lacks_second_factor` is refused by the route's dependencies.
    """
    holder = await identify_holder(connection)
    if holder is None:
        return None
    wiring = wiring_of(connection.app)
    caller = await wiring.get(ActsAs)(connection, holder) if wiring.has(ActsAs) else holder
    if caller.actor is not None:
        here = context.current()
        here.principal_id, here.actor_id = str(caller.id), str(caller.actor.id)
    if caller.actor is not None or "user" not in connection.scope:
        connection.scope["user"] = caller  # Starlette's `request.user`
    return caller


async def identify_holder(connection: HTTPConnection) -> Principal | None:
    """Whose credential the request carries, whether or not they act as another user."""
    via: Literal["jwt", "cookie"] = "jwt"
    token = _bearer_token(connection.scope["headers"])
    key = _api_key(connection, token)
    if key is not None:
        return await _by_key(connection, key)
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
    if not (here := context.current()).actor_id:
        here.principal_id = str(principal.id)
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


def _api_key(connection: HTTPConnection, token: str | None) -> str | None:
    """The key, which may also be sent as the bearer token: an access token has dots."""
    headers: Iterable[tuple[bytes, bytes]] = connection.scope["headers"]
    sent = [value for name, value in headers if name == b"x-api-key"]
    if not sent or not wiring_of(connection.app).has(ApiKeys):  # without keys of ours the header is the app's business
        return token if token is not None and "." not in token else None
    if len(sent) > 1 or token is not None:
        raise InvalidTokenError("Send one credential: a bearer token or an API key.")
    return sent[0].decode("latin-1").strip()


async def _by_key(connection: HTTPConnection, key: str) -> Principal:
    wiring = wiring_of(connection.app)
    if not wiring.has(ApiKeys):
        shared(connection, Sessions)  # which says so when there are no accounts at all
        raise InvalidTokenError("This is no access token, and the service takes no API keys.")
    keys = wiring.get(ApiKeys)
    verified_by, principal = connection.scope.get(_VERIFIED, (None, None))
    if verified_by is not keys:
        verified = await keys.verify(key)
        principal = verified.principal
        connection.scope[_VERIFIED], connection.scope[KEY_RATE] = (keys, principal), verified.rate
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


Caller = Annotated[Principal, Security(get_caller)]
Identity = Annotated[Principal, Security(get_current_user)]
LoggedIn = Annotated[Principal, Security(get_login)]
LimitedLogin = Annotated[Principal, Security(get_limited_login)]
Actor = Annotated[Principal, Security(get_actor)]
Leaving = Annotated[Principal, Security(get_leaving)]
OptionalIdentity = Annotated[Principal | None, Security(get_optional_user)]


def shared(connection: HTTPConnection, kind: type[T]) -> T:
    """Something that this room shares in the app.

    Raises:
        ConfigurationError: The app has no accounts.
    """
    wiring = wiring_of(connection.app)
    if not wiring.has(kind):
        raise ConfigurationError("This app has no accounts: call add_auth_users(app) before it starts.")
    return wiring.get(kind)
