from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI

from svc_infra.cache import add_cache
from svc_infra.db import AsyncDatabase
from svc_infra.obs import context
from svc_infra.security import Organizations
from svc_infra.security.http import Caller, Identity
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.permissions import (
    RequirePermission,
    RequireRoles,
    RequireScopes,
    RequireService,
    RequireUser,
    register_role,
)
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import RequireTenantRole, TenantId
from svc_infra.testing import FakeClock
from tests.security.conftest import Client, running, service
from tests.security.test_http import give_roles


def with_keys(db: AsyncDatabase, clock: FakeClock, **sections: Any) -> FastAPI:
    """An app that takes keys."""
    app = service(db, clock, **sections)
    add_tenancy(app)
    add_api_keys(app)
    register_role(app, "member", ["ticket.read"], in_organizations=True)
    register_role(app, "admin", ["ticket.read", "ticket.write"], in_organizations=True)

    @app.get("/whoami")
    async def whoami(caller: Caller) -> dict[str, Any]:
        here = context.current()
        return {
            "id": str(caller.id),
            "scopes": sorted(caller.scopes or ()),
            "tenant": caller.tenant_id,
            "service": caller.is_service,
            "context": [here.principal_id, here.api_key_id],
        }

    for path, guard in {
        "/user": RequireUser(),
        "/service": RequireService(),
        "/reader": RequireRoles("reader"),
        "/report": RequirePermission("report.read"),
        "/ticket": RequireScopes("ticket.read"),
        "/owner": RequireTenantRole("owner"),
    }.items():

        @app.get(path, dependencies=[guard])
        async def guarded() -> str:
            return "welcome"

    @app.get("/identity")
    async def identity(user: Identity) -> None: ...

    @app.get("/tenant")
    async def tenant(tenant_id: TenantId) -> str:
        return tenant_id

    return app


@pytest.fixture
async def client(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(with_keys(db, clock), clock) as client:
        yield client


@pytest.fixture
async def here(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """For what does not depend on the engine."""
    async with running(with_keys(sqlite_db, clock), clock) as client:
        yield client


@pytest.fixture
async def cached(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    app = with_keys(sqlite_db, clock, auth={"token_cache": "on"})
    add_cache(app)
    async with running(app, clock) as client:
        yield client


async def reader(client: Client, db: AsyncDatabase, email: str = "ana@example.com") -> tuple[Client, UUID]:
    """A user with the role `reader`, logged in."""
    user_id = await client.register(email)
    await give_roles(db, email, "reader")
    return await client.log_in(email), user_id


async def made(client: Client, **body: Any) -> dict[str, Any]:
    """A new key, with everything that is said about it."""
    answer = await client.http.post("/auth/api-keys", json={"name": "ci", **body}, headers=client.bearer)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def call(client: Client, key: str, path: str = "/whoami", **headers: str) -> httpx2.Response:
    return await client.http.get(path, headers={"X-API-Key": key, **headers})


async def organization(db: AsyncDatabase, owner_id: UUID, **members: UUID) -> UUID:
    """One with these members under these roles."""
    async with db.session() as session:
        organizations = Organizations(session)
        made = await organizations.create(name="Acme", owner_id=owner_id)
        for role, user_id in members.items():
            await organizations.add_member(made.id, user_id, role)
        return made.id
