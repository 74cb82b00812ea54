"""What routes require of their callers, as dependencies, and the policies that the routes of an app declare."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, params
from fastapi.dependencies.models import Dependant
from fastapi.requests import HTTPConnection
from fastapi.routing import iter_route_contexts

from svc_infra.errors import ConfigurationError, ForbiddenError
from svc_infra.obs import context
from svc_infra.route_policy import PUBLIC, declared_by, declares
from svc_infra.security.access.policy import check_permission_name
from svc_infra.security.http import Caller, LoggedIn, get_current_user, shared
from svc_infra.security.methods import FRESH_SECONDS, not_fresh
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Sessions

_FASTAPI_PAGES = "fastapi.applications"


@declares(PUBLIC)
async def _anybody() -> None: ...


def public() -> params.Depends:
    """A dependency that says: everybody may call this route."""
    return params.Depends(_anybody)


def RequireUser() -> params.Depends:  # noqa: N802 - reads like the type that it stands for
    """A dependency that refuses who is not a user: nobody (401) and services (403)."""
    return params.Depends(get_current_user)


def RequireService() -> params.Depends:  # noqa: N802
    """A dependency that refuses who is no service with a key of its own: nobody (401) and users (403)."""

    @declares("service")
    async def check(caller: Caller) -> None:
        if not caller.is_service:
            raise ForbiddenError("This needs the key of a service.")

    return params.Depends(check)


def RequireFreshAuth(*, max_age_seconds: float = FRESH_SECONDS) -> params.Depends:  # noqa: N802
    """A dependency that refuses a login that was proven too long ago (401), and every key (403), which nobody proves.

    The answer says what is wrong as RFC 9470 does; `POST /auth/reauthenticate` makes the login fresh again. Whoever
    acts as somebody else is not fresh either.

    Args:
        max_age_seconds: How long ago the login, or its last proof, may be.
    """

    @declares(f"login proven within {max_age_seconds:g} seconds")
    async def check(connection: HTTPConnection, user: LoggedIn) -> None:
        check_fresh(connection, user, max_age_seconds=max_age_seconds)

    return params.Depends(check)


def check_fresh(connection: HTTPConnection, user: Principal, *, max_age_seconds: float = FRESH_SECONDS) -> None:
    """As `RequireFreshAuth`, for a caller that is known already.

    Raises:
        StaleAuthenticationError: The login was proven too long ago, or not by whoever acts.
    """
    impersonated = context.current().actor_id not in ("", str(user.id))
    if impersonated or not shared(connection, Sessions).is_fresh(user, max_age_seconds=max_age_seconds):
        raise not_fresh(max_age_seconds=max_age_seconds)


def RequireScopes(*scopes: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses a key without all of these scopes (403); a login is not limited to any.

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    _check_names(scopes)
    return _require_all("scope", scopes, lambda caller: filter(caller.carries, scopes))


def RequireAnyScope(*scopes: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses a key without any of these scopes (403); a login is not limited to any.

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    _check_names(scopes)
    return _require_any("scope", scopes, lambda caller: filter(caller.carries, scopes))


def RequirePermission(*permissions: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses who does not hold all of these permissions (403).

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    _check_names(permissions)
    return _require_all("permission", permissions, lambda caller: filter(caller.may, permissions))


def RequireAnyPermission(*permissions: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses who holds none of these permissions (403).

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    _check_names(permissions)
    return _require_any("permission", permissions, lambda caller: filter(caller.may, permissions))


def RequireRoles(*roles: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses who does not have all of these roles (403), and every key: keys carry scopes only."""
    return _require_all("role", roles, lambda caller: caller.roles)


def RequireABAC(predicate: Callable[..., Any]) -> params.Depends:  # noqa: N802
    """A dependency that refuses whatever a predicate does not answer with True (403).

    Args:
        predicate: A dependency itself, so it takes what it decides by: the caller (`Identity`), path parameters, a
            resource that another dependency loads. It is asked only about verified callers.
    """

    @declares(f"predicate {getattr(predicate, '__qualname__', type(predicate).__qualname__)}")
    async def check(caller: Caller, allowed: Annotated[object, Depends(predicate)]) -> None:
        if allowed is not True:
            raise ForbiddenError("This is not yours to do.")

    return params.Depends(check)


def owns_resource(resource_getter: Callable[..., Any], owner_field: str = "owner_id") -> Callable[..., Any]:
    """A predicate for `RequireABAC`: the caller is the owner. What does not exist is owned by nobody.

    Args:
        resource_getter: A dependency that gives the resource, or None.
        owner_field: Its attribute that holds the owner's id.
    """

    async def owns(caller: Caller, resource: Annotated[object, Depends(resource_getter)]) -> bool:
        owner = getattr(resource, owner_field) if resource is not None else None
        return owner is not None and str(owner) == str(caller.id)

    return owns


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """One route of an app, and what it declares.

    Attributes:
        methods: In upper case; empty for a WebSocket and a mounted app.
        path: With the path of the apps that it is mounted in.
        policies: Everything that its dependencies, it itself and what it is mounted in declare.
    """

    methods: tuple[str, ...]
    path: str
    policies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{','.join(self.methods)} {self.path}".strip()


def route_policies(app: Any) -> list[RoutePolicy]:
    """Every route of an app and of the apps that are mounted in it, with the policies that it declares."""
    return list(_declared(app.routes, "", ()))


def routes_without_policy(app: Any) -> list[RoutePolicy]:
    """The routes of an app that do not say who may call them."""
    return [route for route in route_policies(app) if not route.policies]


def _declared(routes: Iterable[Any], prefix: str, outer: tuple[str, ...]) -> Iterator[RoutePolicy]:
    for route in iter_route_contexts(list(routes)):
        path = prefix + str(route.path or "")
        mounted = getattr(route.original_route, "app", None)
        inner = getattr(mounted, "routes", None) if route.endpoint is None else None
        own = outer + tuple(_policies(route, mounted))
        if inner is not None:
            yield from _declared(inner, path, own)
        else:
            methods = set(route.methods or ())
            yield RoutePolicy(tuple(sorted(methods - ({"HEAD"} if "GET" in methods else set()))), path, own)


def _policies(route: Any, mounted: Any) -> Iterator[str]:
    if getattr(route.endpoint, "__module__", "") == _FASTAPI_PAGES:
        yield PUBLIC  # FastAPI's own document and its viewers
    dependant = getattr(route, "dependant", None)
    enforcers = _enforcers(dependant) if dependant is not None else [route.endpoint]
    for enforcer in (*enforcers, route.original_route, mounted):
        if (policy := declared_by(enforcer)) is not None:
            yield policy


def _enforcers(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _enforcers(inner)


def _check_names(permissions: tuple[str, ...]) -> None:
    for permission in permissions:
        check_permission_name(permission)


def _require_all(kind: str, names: tuple[str, ...], held: Callable[[Principal], Iterable[str]]) -> params.Depends:
    @declares(_said(kind, names, " and "))
    async def check(caller: Caller) -> None:
        missing = sorted(set(names).difference(held(caller)))
        if missing:
            raise ForbiddenError(f"This needs the {kind} {', '.join(missing)}.")

    return params.Depends(check)


def _require_any(kind: str, names: tuple[str, ...], held: Callable[[Principal], Iterable[str]]) -> params.Depends:
    @declares(_said(kind, names, " or "))
    async def check(caller: Caller) -> None:
        if not any(True for _ in held(caller)):
            raise ForbiddenError(f"This needs the {kind} {' or '.join(names)}.")

    return params.Depends(check)


def _said(kind: str, names: tuple[str, ...], joined: str) -> str:
    if not names:
        raise ConfigurationError(f"A route requires no {kind} at all: name one.")
    return f"{kind} {joined.join(names)}"
