"""The routes below `/admin`: users, their logins, keys and roles, and the audit trail.

To look at something needs the permission for it; to change something needs the role `admin` too, and a login.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.admin.impersonation import Impersonations
from svc_infra.admin.rank import ADMIN_ROLE, check_another, check_gives, check_not_above
from svc_infra.admin.trail import TrailQuery, find_entries
from svc_infra.admin.users import UserQuery, find_users
from svc_infra.db.http import DbSession, ReadSession
from svc_infra.errors import NotFoundError
from svc_infra.security import audit
from svc_infra.security.access import Policy, policy_of
from svc_infra.security.access.http import RequirePermission, RequireRoles
from svc_infra.security.accounts import Accounts
from svc_infra.security.http import LoggedIn, PrivateRoute, shared
from svc_infra.security.keys import ApiKey, ApiKeys
from svc_infra.security.keys.http import KeyOut
from svc_infra.security.keys.keys import keys_of_user
from svc_infra.security.mfa import Factors
from svc_infra.security.models import HasAccount
from svc_infra.security.models import Session as Login
from svc_infra.security.organizations import UserModel
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Sessions
from svc_infra.wiring import wiring_of

T = TypeVar("T")


def _spelled(moment: object) -> object:
    """A date as RFC 3339 writes it: a number could be seconds or anything."""
    if not isinstance(moment, str) or moment[4:5] != "-":
        raise ValueError("write it as 2026-01-31T12:00:00Z")
    return moment


def _in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, if it has a date there."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the calendar") from None


Limit = Annotated[int, Query(ge=1, le=100)]
Moment = Annotated[AwareDatetime, BeforeValidator(_spelled), AfterValidator(_in_utc)]
Text = Annotated[str | None, Query(min_length=1, max_length=200)]
UserId = Annotated[str | None, Query(min_length=1, max_length=64)]
Role = Annotated[str | None, Query(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Shown(BaseModel):
    """What an operator sees of a row."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID


class UserOut(Shown):
    """An account."""

    email: str
    is_active: bool
    is_verified: bool
    roles: list[str]
    created_at: AwareDatetime
    last_login_at: AwareDatetime | None
    disabled_reason: str | None


class LoginOut(Shown):
    """A login that is alive."""

    user_agent: str
    created_at: AwareDatetime
    last_seen_at: AwareDatetime
    expires_at: AwareDatetime


class RoleOut(BaseModel):
    """A role, and what it permits."""

    name: str
    permissions: list[str]


class EntryOut(Shown):
    """An entry of the audit trail."""

    tenant_id: str
    sequence: int
    at: AwareDatetime
    action: str
    outcome: str
    actor_id: str
    acting_as: str
    target: str
    client_ip: str
    request_id: str
    trace_id: str
    before: Any = None
    after: Any = None


class UserPage(BaseModel):
    """Some accounts, in the order in which they were made."""

    items: list[UserOut]
    next: UUID | None = Field(description="Send it as `after` for the next page; null on the last one.")


class EntryPage(BaseModel):
    """Some entries, the newest first."""

    items: list[EntryOut]
    next: UUID | None = Field(description="Send it as `before` for the next page; null on the last one.")


class DisableIn(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=200)]


class Ended(BaseModel):
    """How many have ended."""

    ended: int


def admin_router(**options: Any) -> APIRouter:
    """A router whose routes need the role `admin`; each says beside that which permission it needs.

    No cache keeps what they answer: the routes are `PrivateRoute`s, unless `route_class` says something else.

    Args:
        **options: As for `APIRouter`.
    """
    dependencies = [RequireRoles(ADMIN_ROLE), *options.get("dependencies", ())]
    return APIRouter(**{"route_class": PrivateRoute, **options, "dependencies": dependencies})


def console_router(prefix: str) -> APIRouter:
    """The routes below `/admin` but those of impersonation.

    Args:
        prefix: Where they are.
    """
    router = APIRouter(prefix=prefix, tags=["admin"], route_class=PrivateRoute)
    _add_reads(router)
    _add_trail(router)
    changes = admin_router()
    _add_accounts(changes)
    _add_roles(changes)
    _add_logins_and_keys(changes)
    _add_second_factors(changes)
    router.include_router(changes)
    return router


def _needs(permission: str) -> dict[str, Any]:
    return {"dependencies": [RequirePermission(permission)]}


def _add_reads(router: APIRouter) -> None:
    @router.get("/users", **_needs("user.read"))
    async def search_users(
        request: Request, session: DbSession, query: Text = None, role: Role = None, active: bool | None = None,
        after: UUID | None = None, limit: Limit = 50,
    ) -> UserPage:  # fmt: skip
        """Search accounts by a part of the address, or by an id."""
        wanted = UserQuery(text=query or "", role=role, is_active=active, after=after, limit=limit)
        found = await find_users(session, _users(request), wanted)
        facts = {"query": query, "role": role, "active": active, "found": min(len(found), limit)}
        await audit.record(session, "admin.users.searched", after=facts)
        items = [UserOut.model_validate(user) for user in found[:limit]]
        return UserPage(items=items, next=items[-1].id if len(found) > limit else None)

    @router.get("/users/{user_id}", **_needs("user.read"))
    async def show_user(user_id: UUID, request: Request, session: DbSession) -> UserOut:
        """An account."""
        user = await _existing(request, session, user_id)
        await audit.record(session, "admin.user.viewed", target=f"user:{user_id}")
        return UserOut.model_validate(user)

    @router.get("/users/{user_id}/sessions", **_needs("security.session.list"))
    async def list_logins(user_id: UUID, request: Request, session: DbSession) -> list[LoginOut]:
        """A user's logins that are alive, the one that was seen last first."""
        await _existing(request, session, user_id)
        found = await shared(request, Sessions).list(session, user_id)
        await audit.record(session, "admin.sessions.viewed", target=f"user:{user_id}")
        return [LoginOut.model_validate(login) for login in found]

    @router.get("/users/{user_id}/api-keys", **_needs("user.read"))
    async def list_keys(user_id: UUID, request: Request, session: DbSession) -> list[KeyOut]:
        """A user's API keys that are alive, the oldest first."""
        await _existing(request, session, user_id)
        found = await _room(request, ApiKeys).list(session, keys_of_user(user_id))
        await audit.record(session, "admin.api_keys.viewed", target=f"user:{user_id}")
        return [KeyOut.model_validate(key) for key in found]

    @router.get("/roles", **_needs("user.read"))
    async def list_roles(request: Request) -> list[RoleOut]:
        """The roles that an account can have."""
        roles = sorted(_policy(request).roles.items())
        return [RoleOut(name=name, permissions=sorted(permissions)) for name, permissions in roles]


async def _trail_query(
    actor_id: UserId = None,
    acting_as: UserId = None,
    subject_id: Annotated[UserId, Query(description="Who did it, as whom, or to whom.")] = None,
    target: Text = None,
    action: Annotated[Text, Query(description="With a dot at its end: everything that begins so.")] = None,
    outcome: Annotated[str | None, Query(pattern="^(success|failure)$")] = None,
    tenant_id: Annotated[str | None, Query(max_length=64, description="Empty for the service's own.")] = None,
    since: Moment | None = None,
    until: Moment | None = None,
    before: UUID | None = None,
    limit: Limit = 50,
) -> TrailQuery:
    return TrailQuery(
        actor_id=actor_id, acting_as=acting_as, subject_id=subject_id, target=target, action=action, outcome=outcome,
        tenant_id=tenant_id, since=since, until=until, before=before, limit=limit,
    )  # fmt: skip


def _add_trail(router: APIRouter) -> None:
    @router.get("/audit", **_needs("audit.read"))
    async def search_audit(
        request: Request, session: DbSession, query: Annotated[TrailQuery, Depends(_trail_query)]
    ) -> EntryPage:
        """Search the audit trail, the newest entries first."""
        await _end_expired(request, session)
        found = await find_entries(session, query)
        asked = {name: value for name in TrailQuery.__slots__ if (value := getattr(query, name)) is not None}
        await audit.record(session, "admin.audit.searched", after=asked)
        items = [_entry(entry) for entry in found[: query.limit]]
        return EntryPage(items=items, next=items[-1].id if len(found) > query.limit else None)


def _add_accounts(router: APIRouter) -> None:
    @router.post("/users/{user_id}/disable", status_code=204, **_needs("user.write"))
    async def disable(user_id: UUID, body: DisableIn, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """Let nobody use an account, and end its logins."""
        check_another(user_id, actor)
        await _subject(request, session, user_id, actor)
        await shared(request, Accounts).disable(session, user_id, reason=body.reason)

    @router.post("/users/{user_id}/enable", status_code=204, **_needs("user.write"))
    async def enable(user_id: UUID, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """Let an account be used again."""
        await _subject(request, session, user_id, actor)
        await shared(request, Accounts).enable(session, user_id)

    @router.post("/users/{user_id}/unlock", status_code=204, **_needs("user.write"))
    async def unlock(user_id: UUID, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """Forget the failed attempts at an account."""
        await _subject(request, session, user_id, actor)
        await shared(request, Accounts).unlock(session, user_id)


def _add_roles(router: APIRouter) -> None:
    async def change(request: Request, session: AsyncSession, user_id: UUID, role: str, actor: Principal) -> set[str]:
        """The roles that a user has, once it is sure that the actor may give and take this one."""
        check_another(user_id, actor)
        check_gives(_policy(request), role, actor)
        return set((await _subject(request, session, user_id, actor)).roles)

    @router.put("/users/{user_id}/roles/{role}", status_code=204, **_needs("user.write"))
    async def give_role(user_id: UUID, role: str, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """Give a user a role that permits nothing that the caller may not do."""
        has = await change(request, session, user_id, role, actor)
        if role not in has:
            await shared(request, Accounts).set_roles(session, user_id, has | {role})

    @router.delete("/users/{user_id}/roles/{role}", status_code=204, **_needs("user.write"))
    async def take_role(user_id: UUID, role: str, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """Take a role from a user."""
        has = await change(request, session, user_id, role, actor)
        if role in has:
            await shared(request, Accounts).set_roles(session, user_id, has - {role})


def _add_logins_and_keys(router: APIRouter) -> None:
    @router.post("/users/{user_id}/sessions/revoke", **_needs("security.session.revoke"))
    async def revoke_logins(user_id: UUID, request: Request, actor: LoggedIn, session: DbSession) -> Ended:
        """End every login of a user."""
        check_another(user_id, actor)
        await _subject(request, session, user_id, actor)
        return Ended(ended=await shared(request, Sessions).revoke_all(session, user_id, reason="by_admin"))

    @router.delete("/sessions/{session_id}", status_code=204, **_needs("security.session.revoke"))
    async def revoke_login(session_id: UUID, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """End one login."""
        login = await session.get(Login, session_id)
        if login is not None:
            check_another(login.user_id, actor)
            await _subject(request, session, login.user_id, actor)
        if login is None or not await shared(request, Sessions).revoke(session, session_id, reason="by_admin"):
            raise NotFoundError("Session", session_id)

    @router.delete("/api-keys/{key_id}", status_code=204, **_needs("user.write"))
    async def revoke_key(key_id: UUID, request: Request, actor: LoggedIn, session: DbSession) -> None:
        """End an API key, of a user or of a service."""
        keys = _room(request, ApiKeys)
        key = await session.get(ApiKey, key_id)
        if key is not None and key.user_id is not None:
            await _subject(request, session, key.user_id, actor)
        if key is None or not await keys.revoke(session, key, reason="by_admin"):
            raise NotFoundError("API key", key_id)


def _add_second_factors(router: APIRouter) -> None:
    @router.post("/users/{user_id}/mfa/reset", **_needs("user.write"))
    async def reset_factors(user_id: UUID, request: Request, actor: LoggedIn, session: ReadSession) -> Ended:
        """Take every second factor from a user who has lost them."""
        check_another(user_id, actor)
        check_not_above(_policy(request), (await _existing(request, session, user_id)).roles, actor)
        return Ended(ended=await _room(request, Factors).reset(user_id))


def _entry(entry: audit.AuditEntry) -> EntryOut:
    changes = {name: json.loads(text) if (text := getattr(entry, name)) else None for name in ("before", "after")}
    return EntryOut.model_validate({**{name: getattr(entry, name) for name in _FIELDS}, **changes})


_FIELDS = EntryOut.model_fields.keys() - {"before", "after"}


async def _existing(request: Request, session: AsyncSession, user_id: UUID) -> HasAccount:
    user = await session.get(_users(request), user_id)
    if user is None:
        raise NotFoundError("User", user_id)
    return user


async def _subject(request: Request, session: AsyncSession, user_id: UUID, actor: Principal) -> HasAccount:
    """The user to whom something is to be done, locked for this unit of work, if the actor may touch them at all."""
    wanted = select(_users(request)).where(_users(request).id == user_id).with_for_update()
    user = (await session.scalars(wanted.execution_options(populate_existing=True))).one_or_none()
    if user is None:
        raise NotFoundError("User", user_id)
    check_not_above(_policy(request), user.roles, actor)
    return user


async def _end_expired(request: Request, session: AsyncSession) -> None:
    wiring = wiring_of(request.app)
    if wiring.has(Impersonations):
        await wiring.get(Impersonations).end_expired(session)


def _users(request: Request) -> type[HasAccount]:
    return shared(request, UserModel).kind


def _policy(request: Request) -> Policy:
    return policy_of(wiring_of(request.app))


def _room(request: Request, kind: type[T]) -> T:
    """What a room shares that the app need not have: without it there is nothing at the address."""
    if not wiring_of(request.app).has(kind):
        raise NotFoundError
    return shared(request, kind)
