"""The tenant of a request."""

from svc_infra.tenancy import set_tenant_resolver
from svc_infra.tenancy.http import OptionalTenantId, TenantId, require_tenant_id, resolve_tenant_id

__all__ = ["OptionalTenantId", "TenantId", "require_tenant_id", "resolve_tenant_id", "set_tenant_resolver"]
