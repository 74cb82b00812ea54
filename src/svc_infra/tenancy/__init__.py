"""Tenants: which one a request acts for, and who may act there.

- `context`: the order in which a tenant is found, and `set_tenant_resolver`
- `http`: `TenantId`, `OptionalTenantId`, `RequireTenantRole`, `RequireTenantPermission` · `add`: `add_tenancy`
"""

from svc_infra.tenancy.context import TenantResolver, set_tenant_resolver

__all__ = ["TenantResolver", "set_tenant_resolver"]
