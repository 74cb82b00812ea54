"""The two routes of impersonation, and as whom a request acts."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.requests import HTTPConnection
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException

from svc_infra.admin.http import admin_router
from svc_infra.admin.impersonation.impersonations import Impersonations, Terms
from svc_infra.admin.impersonation.models import MAX_REASON_CHARACTERS, MAX_USER_ID_CHARACTERS
from svc_infra.admin.impersonation.notice import give_notice
from svc_infra.admin.impersonation.targets import Target, Targets
from svc_infra.admin.rank import IMPERSONATE
from svc_infra.admin.users import as_id
from svc_infra.db.http import DbSession
from svc_infra.errors import ForbiddenError, ImpersonationEndedError, NotFoundError, SvcInfraError
from svc_infra.security.access.http import RequirePermission
from svc_infra.security.http import SAFE_METHODS, Actor, LoggedIn, PrivateRoute
from svc_infra.security.principal import Principal
from svc_infra.wiring import Wiring

OWN_HANDS = ("svc_infra.security.", "svc_infra.admin.")
"""Rooms none of whose routes changes anything for who acts as somebody else: accounts, keys, second factors, logins
elsewhere, organizations, administration. A route that is added to them is among them."""

_ACTING = "svc_infra.acting"


class StartIn(BaseModel):
    """As whom, and why."""

    model_config = ConfigDict(extra="forbid")

    user_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$", max_length=MAX_USER_ID_CHARACTERS)]
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON_CHARACTERS)] = (
        Field(description="For the record, such as the number of the support case.")
    )
    read_only: bool = Field(False, description="Change nothing meanwhile: only GET, HEAD and OPTIONS are answered.")


@dataclass(frozen=True, slots=True)
class _As:
    holder: Principal
    principal: Principal
    read_only: bool


class ActingAs:
    """Finds out as whom the login of a request acts: the port `ActsAs`.

    Args:
        wiring: The app's, where the rest is found once the app has started.
        terms: What holds for every impersonation.
    """

    def __init__(self, wiring: Wiring, terms: Terms) -> None:
        self._wiring = wiring
        self._terms = terms

    async def __call__(self, connection: HTTPConnection, holder: Principal) -> Principal:
        """The user as whom the login acts, or the holder himself.

        Raises:
            ImpersonationEndedError: The request says that it acts as a user, and the login does not, or not any more.
            ForbiddenError: This is not done as another user.
        """
        token = connection.cookies.get(self._terms.cookie_name)
        if token is None:
            return holder
        acting: _As | None = connection.scope.get(_ACTING)
        if acting is None or acting.holder is not holder:
            acting = connection.scope[_ACTING] = await self._verified(connection, holder, token)
        give_notice(connection.scope, str(acting.principal.id))
        _check_allowed(connection, acting)
        return acting.principal

    async def _verified(self, connection: HTTPConnection, holder: Principal, token: str) -> _As:
        impersonations = self._wiring.get(Impersonations)
        row = await impersonations.find(holder, token)
        if row is None:
            raise self._ended()
        target = await self._target(connection, row.target_id)
        refusal = "The user is disabled or gone." if target is None else impersonations.refusal(holder, target)
        if target is None or refusal is not None:
            await impersonations.end(row, refusal or "")
            raise self._ended()
        found = as_id(target.id)
        principal = replace(
            holder,
            id=found if found is not None else cast(UUID, target.id),  # as `Principal.id` says
            email=target.email,
            via="impersonated",
            session_id=None,
            authenticated_at=None,
            actor=holder,
        )
        return _As(holder, principal, row.read_only)

    async def _target(self, connection: HTTPConnection, target_id: str) -> Target | None:
        request: Any = Request(connection.scope) if connection.scope["type"] == "http" else connection
        try:
            target = await self._wiring.get(Targets).find(request, target_id)
        except (HTTPException, SvcInfraError) as error:
            status = error.status_code if isinstance(error, HTTPException) else error.status
            if status >= 500:
                raise
            return None
        return target if target is not None and target.id == target_id else None

    def _ended(self) -> ImpersonationEndedError:
        gone = Response()
        self.forget(gone)
        return ImpersonationEndedError(headers={"Set-Cookie": gone.headers["set-cookie"]})

    def give(self, response: Response, token: str) -> None:
        """Put a token into the browser."""
        self._set(response, token, self._terms.ttl_seconds)

    def forget(self, response: Response) -> None:
        """Take it out again."""
        self._set(response, "", 0)

    def _set(self, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            self._terms.cookie_name,
            value,
            max_age=seconds,
            path="/",
            httponly=True,
            samesite="lax",
            secure=not self._wiring.settings.environment.is_trusted,
        )


def _check_allowed(connection: HTTPConnection, acting: _As) -> None:
    """Refuse what nobody does as another user. Only routes are asked: what runs before them does nothing itself."""
    if connection.scope.get("method", "") in SAFE_METHODS:
        return
    if acting.read_only:
        raise ForbiddenError("You act as another user to look only: stop that, or begin again without read_only.")
    endpoint = connection.scope.get("endpoint")
    if f"{getattr(endpoint, '__module__', '')}.".startswith(OWN_HANDS):
        raise ForbiddenError("Only the user can do this, and you act as them: stop that first.")


def impersonation_router(prefix: str, acting: ActingAs, wiring: Wiring) -> APIRouter:
    """The routes of impersonation.

    Args:
        prefix: Where they are.
        acting: Knows the cookie.
        wiring: The app's.
    """
    router = APIRouter(prefix=prefix, tags=["admin"], route_class=PrivateRoute)
    guarded = admin_router()
    missing: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such user, or they are disabled."}}

    @guarded.post(
        "/impersonate/start", status_code=204, responses=missing, dependencies=[RequirePermission(IMPERSONATE)]
    )
    async def start(body: StartIn, request: Request, response: Response, actor: LoggedIn, session: DbSession) -> None:
        """Act as a user from the next request on, until stopped, for a short time, within the own permissions."""
        impersonations = wiring.get(Impersonations)
        target = await wiring.get(Targets).find(request, body.user_id)
        why = "There is no such user." if target is None else impersonations.refusal(actor, target)
        if target is None or why is not None:
            await impersonations.refused(actor, body.user_id, why or "", body.reason)
            raise NotFoundError("User", body.user_id) if target is None else ForbiddenError(why)
        await impersonations.end_expired(session)
        token = await impersonations.start(session, actor, target, reason=body.reason, read_only=body.read_only)
        acting.give(response, token)

    @router.post("/impersonate/stop", status_code=204)
    async def stop(response: Response, actor: Actor, session: DbSession) -> None:
        """Act as oneself again; whoever does that already gets the same answer."""
        await wiring.get(Impersonations).stop(session, actor.session_id)
        acting.forget(response)

    router.include_router(guarded)
    return router
