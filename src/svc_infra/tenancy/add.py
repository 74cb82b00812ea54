"""Wires the room into an app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svc_infra.middleware.http import IdentifiesTenant
from svc_infra.tenancy.context import Tenancy, TenantResolver, set_tenant_resolver
from svc_infra.tenancy.http import identify_tenant
from svc_infra.wiring import wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_tenancy(app: FastAPI, resolver: TenantResolver | None = None) -> None:
    """Give an app tenants: `TenantId` and its relatives work from now on. A second call changes at most the resolver.

    Args:
        app: An app with accounts (`add_auth_users`), or with a resolver that needs none.
        resolver: The app's own answer; see `set_tenant_resolver`.
    """
    wiring = wiring_of(app)
    if resolver is not None or not wiring.has(Tenancy):
        set_tenant_resolver(app, resolver)
    wiring.provide(IdentifiesTenant, identify_tenant)
