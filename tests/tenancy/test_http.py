"""Several ask for the tenant of one request: it is found once, and never overlooked."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Depends, Request
from fastapi.requests import HTTPConnection

from svc_infra.db import AsyncDatabase
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.http import rate_limit
from svc_infra.security import Principal
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.context import set_tenant_resolver
from svc_infra.tenancy.http import OptionalTenantId, TenantId, identify_tenant
from svc_infra.testing import FakeClock
from tests.security.conftest import running, service
from tests.tenancy.test_context import add_routes, member


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_whoever_asks_for_the_tenant_the_resolver_is_asked_once(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    asked: list[str | None] = []

    async def resolver(request: Request, principal: Principal | None, header: str | None) -> str | None:
        asked.append(header)
        return f"shop of {header}" if header else None

    app = service(sqlite_db, clock)
    add_tenancy(app, resolver)
    add_idempotency(app)
    app.add_middleware(RateLimitMiddleware, ())

    @app.post("/required", dependencies=[rate_limit("9/minute", per="tenant"), Idempotent()])
    async def required(tenant: TenantId, same: OptionalTenantId) -> list[str | None]:
        return [tenant, same]

    async with running(app, clock) as client:
        ana, _ = await member(client)

        async def answered(tenant: str, key: str) -> Any:
            headers = {**ana.bearer, "X-Tenant-Id": tenant, "Idempotency-Key": key}
            return (await client.http.post("/required", headers=headers)).json()

        for header in ("a", "b"):
            assert await answered(header, header) == [f"shop of {header}"] * 2
        assert asked == ["a", "b"]
        set_tenant_resolver(app, lambda *_: "another")
        assert await answered("a", "c") == ["another"] * 2


async def test_what_a_middleware_or_dependency_decides_later_is_not_overlooked(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    async def decide(request: Request, before: OptionalTenantId) -> None:
        assert before is None
        request.state.tenant_id = "decided"

    app = service(sqlite_db, clock)
    add_tenancy(app)

    @app.get("/required", dependencies=[Depends(decide)])
    async def required(request: Request) -> str | None:
        return await identify_tenant(request)

    async with running(app, clock) as client:
        assert (await client.http.get("/required")).json() == "decided"


async def test_an_app_that_is_mounted_asks_its_own_resolver(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    outer, inner = service(sqlite_db, clock), service(sqlite_db, clock)
    for app, name in ((outer, "outer"), (inner, "inner")):
        add_tenancy(app, lambda *_, name=name: name)
        add_routes(app)

    class AskFirst:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                assert await identify_tenant(HTTPConnection(scope)) == "outer"
            await self.app(scope, receive, send)

    outer.add_middleware(AskFirst)
    outer.mount("/inner", inner)
    async with running(inner, clock), running(outer, clock) as client:
        assert (await client.http.get("/required")).json()["tenant"] == "outer"
        assert (await client.http.get("/inner/required")).json()["tenant"] == "inner"
