"""Which tenant a request acts for.

Asked in this order, and the first that knows decides:

1. the app's resolver: its answer is final, because it is the app's own check; what it raises refuses the request;
2. the caller: the only tenant that the credential is good for, or the only organization that the user belongs to;
3. the header `X-Tenant-Id`: only from a caller who may act there;
4. `request.state.tenant_id`, which only the service's own middleware can set.

A header never widens what the caller may do, and never loses silently: one that names a tenant in which the caller may
not act is refused, also when the caller has another. The tenants are the organizations, and a tenant's id is
`str(organization.id)`; a resolver may give ids of the app's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import (
    ConfigurationError,
    SvcInfraError,
    TenantRefusedError,
    TenantRequiredError,
    UnauthorizedError,
)
from svc_infra.security.organizations import Organizations
from svc_infra.security.principal import Principal
from svc_infra.wiring import Wiring, wiring_of

TENANT_HEADER = "X-Tenant-Id"
MAX_TENANT_ID_CHARACTERS = 64
"""What a `tenant_id` column holds."""

TenantResolver = Callable[[Any, Principal | None, str | None], str | Awaitable[str | None] | None]
"""`(request, principal, header) -> tenant id, or None to go on`; plain or async. Raise to refuse the request."""


@dataclass(frozen=True, slots=True)
class TenantQuestion:
    """What one request says about its tenant.

    Attributes:
        request: The request itself, for the resolver.
        principal: The verified caller; None for an anonymous one.
        header: The header's value; None when it is missing or empty.
        state: What the service's own middleware decided; None when it did not.
    """

    request: Any
    principal: Principal | None
    header: str | None
    state: str | None


class Tenancy:
    """How one app finds the tenant of a request.

    Args:
        wiring: The app's wiring, where the database is found when it is needed.
        resolver: The app's own answer.
    """

    def __init__(self, wiring: Wiring, resolver: TenantResolver | None = None) -> None:
        self._wiring = wiring
        self._resolver = resolver

    async def resolve(self, question: TenantQuestion) -> str | None:
        """The tenant, or None when nothing names one.

        Raises:
            UnauthorizedError: The header names a tenant and the caller is anonymous.
            TenantRefusedError: The caller may not act in the tenant that the header names, or it does not exist.
        """
        if self._resolver is not None:
            answer = self._resolver(question.request, question.principal, question.header)
            tenant_id = await answer if inspect.isawaitable(answer) else answer
            if tenant_id is not None:
                return _checked(tenant_id)
        if question.header is not None:
            if question.principal is None:
                raise UnauthorizedError(f"{TENANT_HEADER} needs a credential: log in first.")
            return await self._named(question.principal, question.header)
        if question.principal is not None:
            tenant_id = question.principal.tenant_id or await self._only(question.principal)
            if tenant_id is not None:
                return tenant_id
        return None if question.state is None else _checked(question.state)

    def nothing_named(self, principal: Principal | None) -> SvcInfraError:
        """What a request is refused with that must have a tenant and has none: 401 where a credential may name one."""
        return UnauthorizedError() if principal is None and self._resolver is None else TenantRequiredError()

    async def role(self, principal: Principal, tenant_id: str) -> str | None:
        """The caller's role in the tenant; None for who is no member."""
        organization_id = _organization_id(tenant_id)
        if organization_id is None:
            return None
        async with self._db.session(read_only=True) as session:
            return await _role(Organizations(session), organization_id, principal)

    @property
    def _db(self) -> AsyncDatabase:
        return self._wiring.get(AsyncDatabase)

    async def _named(self, principal: Principal, header: str) -> str:
        organization_id = _organization_id(header)
        bound_elsewhere = principal.tenant_id not in (None, str(organization_id))
        if organization_id is None or bound_elsewhere:
            raise TenantRefusedError
        if principal.is_service and principal.tenant_id is not None:
            return principal.tenant_id
        async with self._db.session(read_only=True) as session:
            organizations = Organizations(session)
            welcome = await _role(organizations, organization_id, principal) is not None or (
                principal.may("tenant.any") and await organizations.exists(organization_id)
            )
        if not welcome:
            raise TenantRefusedError
        return str(organization_id)

    async def _only(self, principal: Principal) -> str | None:
        if not isinstance(principal.id, UUID):
            return None
        async with self._db.session(read_only=True) as session:
            belongings = await Organizations(session).of_user(principal.id, limit=2)
        return str(belongings[0].organization.id) if len(belongings) == 1 else None


def set_tenant_resolver(app: Any, resolver: TenantResolver | None) -> None:
    """Let an app decide itself which tenant a request acts for; it has to check the caller, too.

    Args:
        app: The app; no other app is affected.
        resolver: `(request, principal, header) -> tenant id, or None to go on`; None to have none.
    """
    wiring = wiring_of(app)
    wiring.provide(Tenancy, Tenancy(wiring, resolver))


async def _role(organizations: Organizations, organization_id: UUID, principal: Principal) -> str | None:
    """The role of a member; a user without an account of ours (`Principal.id`) is none."""
    return await organizations.role(organization_id, principal.id) if isinstance(principal.id, UUID) else None


def _organization_id(tenant_id: str) -> UUID | None:
    """The id in its one spelling: `UUID` alone would also accept braces, prefixes and missing hyphens."""
    try:
        organization_id = UUID(tenant_id)
    except ValueError:
        return None
    return organization_id if str(organization_id) == tenant_id.lower() else None


def _checked(tenant_id: object) -> str:
    if not isinstance(tenant_id, str) or not 0 < len(tenant_id) <= MAX_TENANT_ID_CHARACTERS:
        raise ConfigurationError(
            f"{tenant_id!r} is no tenant id: give a text of 1 to {MAX_TENANT_ID_CHARACTERS} characters."
        )
    return tenant_id
