"""The tenant of a request, as dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, params
from fastapi.requests import HTTPConnection

from svc_infra.errors import BadRequestError, ConfigurationError, ForbiddenError
from svc_infra.obs import context
from svc_infra.security.access import check_permission_name, declares, policy_of
from svc_infra.security.http import Caller, Identity, OptionalIdentity, identify_user
from svc_infra.security.organizations import OrganizationRole
from svc_infra.tenancy.context import TENANT_HEADER, Tenancy, TenantQuestion
from svc_infra.wiring import wiring_of

_RESOLVED = "svc_infra.tenant"


async def resolve_tenant_id(
    connection: HTTPConnection,
    principal: OptionalIdentity,
    x_tenant_id: Annotated[str | None, Header(alias=TENANT_HEADER, description="The tenant to act for.")] = None,
) -> str | None:
    """The tenant that this request acts for, or None when nothing names one; found once, whoever asks for it.

    Raises:
        BadRequestError: The header was sent more than once.
        UnauthorizedError: The header names a tenant and the caller is anonymous.
        TenantRefusedError: The caller may not act in the tenant that the header names, or it does not exist.
    """
    if len(connection.headers.getlist(TENANT_HEADER)) > 1:
        raise BadRequestError(f"Send {TENANT_HEADER} once.")
    question = TenantQuestion(
        request=connection,
        principal=principal,
        header=(x_tenant_id or "").strip() or None,
        state=getattr(connection.state, "tenant_id", None),
    )
    asked = wiring_of(connection.app).get(Tenancy), principal, question.header, question.state
    before: tuple[object, str | None] = connection.scope.get(_RESOLVED, ((), None))
    answered, tenant_id = before
    if asked != answered:
        tenant_id = await asked[0].resolve(question)
        connection.scope[_RESOLVED] = asked, tenant_id
    context.current().tenant_id = tenant_id or ""
    return tenant_id


@declares("tenant")
async def require_tenant_id(
    connection: HTTPConnection,
    principal: OptionalIdentity,
    tenant_id: Annotated[str | None, Depends(resolve_tenant_id)],
) -> str:
    """The tenant that this request acts for.

    Raises:
        TenantRequiredError: Nothing names one.
        UnauthorizedError: Nothing names one, and a credential might.
    """
    if tenant_id is None:
        raise wiring_of(connection.app).get(Tenancy).nothing_named(principal)
    return tenant_id


TenantId = Annotated[str, Depends(require_tenant_id)]
OptionalTenantId = Annotated[str | None, Depends(resolve_tenant_id)]


async def identify_tenant(connection: HTTPConnection) -> str | None:
    """As `resolve_tenant_id`, for what runs before a route's own dependencies."""
    return await resolve_tenant_id(connection, await identify_user(connection), connection.headers.get(TENANT_HEADER))


def RequireTenantRole(*roles: str) -> params.Depends:  # noqa: N802 - reads like the type that it stands for
    """A dependency that refuses who has none of these roles in the request's tenant (403), and every key."""
    if not roles:
        raise ConfigurationError("A route requires no tenant role at all: name one.")

    @declares(f"tenant role {' or '.join(roles)}")
    async def check(connection: HTTPConnection, user: Identity, tenant_id: TenantId) -> None:
        if user.scopes is not None or await wiring_of(connection.app).get(Tenancy).role(user, tenant_id) not in roles:
            raise ForbiddenError(f"This needs the role {' or '.join(roles)} in the tenant.")

    return params.Depends(check)


def RequireTenantPermission(*permissions: str) -> params.Depends:  # noqa: N802
    """A dependency that refuses whose role in the request's tenant does not permit all of these (403).

    A key also needs them as scopes; a service, which has no role, has its scopes alone.

    Raises:
        ConfigurationError: One is not written as `<resource>.<action>`.
    """
    if not permissions:
        raise ConfigurationError("A route requires no tenant permission at all: name one.")
    for permission in permissions:
        check_permission_name(permission)

    @declares(f"tenant permission {' and '.join(permissions)}")
    async def check(connection: HTTPConnection, caller: Caller, tenant_id: TenantId) -> None:
        wiring = wiring_of(connection.app)
        is_own_service = caller.is_service and caller.tenant_id == tenant_id
        role = OrganizationRole.OWNER if is_own_service else await wiring.get(Tenancy).role(caller, tenant_id)
        held = policy_of(wiring).organization_permissions(role)
        missing = [one for one in permissions if one not in held or not caller.carries(one)]
        if missing:
            raise ForbiddenError(f"This needs the permission {', '.join(missing)} in the tenant.")

    return params.Depends(check)
