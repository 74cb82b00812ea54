from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI, Request

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, NotFoundError, TenantRefusedError, UnauthorizedError
from svc_infra.obs import context
from svc_infra.security import Organizations, Principal
from svc_infra.security.models import Organization, User
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.context import Tenancy, TenantQuestion, TenantResolver, set_tenant_resolver
from svc_infra.tenancy.http import OptionalTenantId, RequireTenantRole, TenantId
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import Client, assert_problem, running, service

Serve = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def serve(db: AsyncDatabase, clock: FakeClock) -> Serve:
    """Runs an app with tenants; what `middleware` finds is put into `request.state.tenant_id`."""

    @asynccontextmanager
    async def serving(resolver: TenantResolver | None = None, state: str | None = None) -> AsyncIterator[Client]:
        app = service(db, clock)
        add_tenancy(app, resolver)
        add_routes(app)
        if state is not None:
            app.add_middleware(StateMiddleware, tenant_id=state)
        async with running(app, clock) as client:
            yield client

    return serving


class StateMiddleware:
    """What a service's own middleware may do."""

    def __init__(self, app: Any, tenant_id: str) -> None:
        self.app = app
        self.tenant_id = tenant_id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["tenant_id"] = self.tenant_id
        await self.app(scope, receive, send)


def add_routes(app: FastAPI) -> None:
    @app.get("/required")
    async def required(tenant: TenantId) -> dict[str, str]:
        return {"tenant": tenant, "context": context.current().tenant_id}

    @app.get("/optional")
    async def optional(tenant: OptionalTenantId) -> dict[str, str | None]:
        return {"tenant": tenant}

    @app.get("/managed", dependencies=[RequireTenantRole("owner", "admin")])
    async def managed() -> str:
        return "welcome"


async def organization(db: AsyncDatabase, owner: UUID, name: str) -> str:
    async with db.session() as session:
        return str((await Organizations(session).create(name=name, owner_id=owner)).id)


async def member(client: Client, email: str = "ana@example.com") -> tuple[Client, UUID]:
    user_id = await client.register(email)
    return await client.log_in(email), user_id


async def tenant(client: Client, path: str = "/required", **headers: str) -> Any:
    answer = await client.get(path, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["tenant"]


async def test_the_only_organization_of_a_user_is_the_tenant(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, user_id = await member(client)
        assert_problem(await ana.get("/required"), 400, "tenant_required")
        assert await tenant(ana, "/optional") is None
        acme = await organization(db, user_id, "Acme")
        assert (await ana.get("/required")).json() == {"tenant": acme, "context": acme}
        assert await tenant(ana, "/optional") == acme


async def test_a_user_of_several_organizations_names_one(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, user_id = await member(client)
        acme, initech = [await organization(db, user_id, name) for name in ("Acme", "Initech")]
        assert_problem(await ana.get("/required"), 400, "tenant_required")
        for chosen in (acme, initech):
            assert await tenant(ana, **{"X-Tenant-Id": chosen}) == chosen
            assert await tenant(ana, **{"x-tenant-id": f" {chosen.upper()} "}) == chosen


async def test_a_foreign_and_an_unknown_tenant_are_refused_alike(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        _, ana_id = await member(client)
        eve, eve_id = await member(client, "eve@example.com")
        acme = await organization(db, ana_id, "Acme")
        refusals = []
        for own in ("", "Eve and sons"):  # as a member of nothing, then as one of another organization
            if own:
                await organization(db, eve_id, own)
            for named in (acme, str(uuid4()), "no-such-tenant", "*", "' OR 1=1 --", "x" * 10_000, f"{{{acme}}}"):
                for path in ("/required", "/optional", "/managed"):
                    problem = assert_problem(await eve.get(path, **{"X-Tenant-Id": named}), 403, "tenant_refused")
                    refusals.append(problem["detail"])
        assert len(set(refusals)) == 1


async def test_who_leaves_an_organization_is_refused_at_once(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, user_id = await member(client)
        acme = await organization(db, user_id, "Acme")
        assert await tenant(ana, **{"X-Tenant-Id": acme}) == acme
        async with db.session() as session:
            await session.delete(await session.get_one(Organization, UUID(acme)))
        assert_problem(await ana.get("/required", **{"X-Tenant-Id": acme}), 403, "tenant_refused")


async def test_an_anonymous_header_is_refused_even_where_no_tenant_is_needed(serve: Serve, db: AsyncDatabase) -> None:
    async with serve(state="from-middleware") as client:
        _, user_id = await member(client)
        acme = await organization(db, user_id, "Acme")
        for named in (acme, "no-such-tenant"):
            for path in ("/required", "/optional"):
                answer = await client.http.get(path, headers={"X-Tenant-Id": named})
                assert_problem(answer, 401, "unauthorized")


async def test_a_header_sent_twice_or_with_a_bad_token_is_refused(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, user_id = await member(client)
        acme = await organization(db, user_id, "Acme")
        twice = [*ana.bearer.items(), ("X-Tenant-Id", acme), ("X-Tenant-Id", acme)]
        assert_problem(await client.http.get("/required", headers=twice), 400, "bad_request")
        forged = {"Authorization": "Bearer nonsense", "X-Tenant-Id": acme}
        assert_problem(await client.http.get("/required", headers=forged), 401, "invalid_token")


async def test_an_empty_header_names_nothing(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, user_id = await member(client)
        acme = await organization(db, user_id, "Acme")
        for empty in ("", "  "):
            assert await tenant(ana, **{"X-Tenant-Id": empty}) == acme


async def test_the_state_of_the_request_comes_last(serve: Serve, db: AsyncDatabase) -> None:
    async with serve(state="from-middleware") as client:
        assert (await client.http.get("/required")).json()["tenant"] == "from-middleware"
        ana, user_id = await member(client)
        assert await tenant(ana) == "from-middleware"
        acme = await organization(db, user_id, "Acme")
        assert await tenant(ana) == acme


async def test_who_may_act_everywhere_still_needs_a_tenant_that_exists(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        _, ana_id = await member(client)
        ops, ops_id = await member(client, "ops@example.com")
        acme = await organization(db, ana_id, "Acme")
        assert_problem(await ops.get("/required", **{"X-Tenant-Id": acme}), 403, "tenant_refused")
        async with db.session() as session:
            (user := await session.get_one(User, ops_id)).roles = ["operator"]
            assert user.is_active
        assert await tenant(ops, **{"X-Tenant-Id": acme}) == acme
        assert_problem(await ops.get("/required", **{"X-Tenant-Id": str(uuid4())}), 403, "tenant_refused")
        assert_problem(await ops.get("/managed", **{"X-Tenant-Id": acme}), 403, "forbidden")


async def test_a_role_in_one_tenant_is_none_in_another(serve: Serve, db: AsyncDatabase) -> None:
    async with serve() as client:
        ana, ana_id = await member(client)
        bob, bob_id = await member(client, "bob@example.com")
        acme, initech = await organization(db, ana_id, "Acme"), await organization(db, bob_id, "Initech")
        async with db.session() as session:
            await Organizations(session).add_member(UUID(acme), bob_id)
        assert (await ana.get("/managed", **{"X-Tenant-Id": acme})).json() == "welcome"
        assert (await bob.get("/managed", **{"X-Tenant-Id": initech})).json() == "welcome"
        assert_problem(await bob.get("/managed", **{"X-Tenant-Id": acme}), 403, "forbidden")


async def test_the_resolver_decides_first_and_alone(serve: Serve, db: AsyncDatabase) -> None:
    def by_host(request: Request, principal: Principal | None, header: str | None) -> str | None:
        return request.headers.get("x-wanted")

    async with serve(by_host) as client:
        ana, user_id = await member(client)
        acme = await organization(db, user_id, "Acme")
        assert await tenant(ana, **{"X-Wanted": "shop-1", "X-Tenant-Id": acme}) == "shop-1"
        assert (await client.http.get("/required", headers={"X-Wanted": "shop-2"})).json()["tenant"] == "shop-2"
        assert await tenant(ana, **{"X-Tenant-Id": acme}) == acme
        assert_problem(await ana.get("/required", **{"X-Tenant-Id": str(uuid4())}), 403, "tenant_refused")


async def test_a_resolver_is_told_who_asks_and_may_be_async(serve: Serve) -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def resolver(request: Request, principal: Principal | None, header: str | None) -> str | None:
        seen.append((principal.email if principal else None, header))
        return "shop"

    async with serve(resolver) as client:
        ana, _ = await member(client)
        assert await tenant(ana, **{"X-Tenant-Id": "any"}) == "shop"
        await client.http.get("/required")
    assert seen == [("ana@example.com", "any"), (None, None)]


async def test_only_where_a_credential_could_name_a_tenant_is_one_asked_for(serve: Serve) -> None:
    async with serve() as client:
        assert_problem(await client.http.get("/required"), 401, "unauthorized")
    async with serve(lambda *_: None) as client:
        assert_problem(await client.http.get("/required"), 400, "tenant_required")


async def test_a_resolver_that_raises_refuses_the_request(serve: Serve) -> None:
    raised: list[Exception] = []

    def resolver(request: Any, principal: Any, header: Any) -> None:
        raise raised[-1]

    async with serve(resolver, state="from-middleware") as client:
        for error, status, code in (
            (NotFoundError("No such shop."), 404, "not_found"),
            (TenantRefusedError(), 403, "tenant_refused"),
            (RuntimeError("the shop service is down"), 500, "internal_error"),
        ):
            raised.append(error)
            for path in ("/required", "/optional"):
                assert_problem(await client.http.get(path), status, code)


async def test_a_resolver_that_gives_no_tenant_id_refuses_the_request(serve: Serve) -> None:
    given: list[Any] = []
    async with serve(lambda *_: given[-1], state="from-middleware") as client:
        for answer in ("", "x" * 65, 7, uuid4(), False):
            given.append(answer)
            for path in ("/required", "/optional"):
                assert_problem(await client.http.get(path), 500, "configuration_error")


async def test_two_apps_have_resolvers_of_their_own(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    one, other, neither = (service(sqlite_db, clock) for _ in range(3))
    add_tenancy(one, lambda *_: "one")
    set_tenant_resolver(other, lambda *_: "other")
    add_tenancy(other)  # keeps the resolver that the app has
    add_tenancy(neither)
    for app in (one, other, neither):
        add_routes(app)
    async with running(one, clock) as first, running(other, clock) as second, running(neither, clock) as third:
        assert (await first.http.get("/required")).json()["tenant"] == "one"
        assert (await second.http.get("/required")).json()["tenant"] == "other"
        assert_problem(await third.http.get("/required"), 401, "unauthorized")
        set_tenant_resolver(one, None)
        assert_problem(await first.http.get("/required"), 401, "unauthorized")


async def test_an_app_without_tenants_says_what_is_missing(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)
    add_routes(app)
    async with running(app, clock) as client:
        answer = await client.http.get("/required")
        assert "add_tenancy" in assert_problem(answer, 500, "configuration_error")["detail"]


async def test_a_credential_that_is_bound_to_a_tenant_is_good_for_no_other(db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(db, clock)
    tenancy = Tenancy(wiring_of(app))
    async with db.session() as session:
        session.add(user := User(email="ana@example.com"))
        await session.flush()
    async with running(app, clock):
        acme, initech = [await organization(db, user.id, name) for name in ("Acme", "Initech")]

    async def asked(
        header: str | None, *, bound_to: str | None, permissions: frozenset[str] = frozenset()
    ) -> str | None:
        principal = Principal(id=user.id, email=user.email, tenant_id=bound_to, permissions=permissions)
        return await tenancy.resolve(TenantQuestion(request=None, principal=principal, header=header, state="other"))

    assert await asked(None, bound_to=acme) == acme
    assert await asked(acme, bound_to=acme) == acme
    assert await asked(initech, bound_to=None) == initech
    for permissions in (frozenset[str](), frozenset({"tenant.any"})):
        with pytest.raises(TenantRefusedError):
            await asked(initech, bound_to=acme, permissions=permissions)


async def test_scopes_take_the_permission_for_every_tenant_away(db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(db, clock)
    tenancy = Tenancy(wiring_of(app))
    async with db.session() as session:
        session.add_all([ana := User(email="ana@example.com"), ops := User(email="ops@example.com")])
        await session.flush()
    async with running(app, clock):
        acme = await organization(db, ana.id, "Acme")
    everywhere = frozenset({"tenant.any"})
    for scopes, welcome in ((None, True), (everywhere, True), (frozenset({"user.read"}), False)):
        principal = Principal(id=ops.id, email=ops.email, permissions=everywhere, scopes=scopes)
        question = TenantQuestion(request=None, principal=principal, header=acme, state=None)
        if welcome:
            assert await tenancy.resolve(question) == acme
        else:
            with pytest.raises(TenantRefusedError):
                await tenancy.resolve(question)


async def test_nothing_is_asked_of_the_database_for_an_anonymous_request(clock: FakeClock) -> None:
    tenancy = Tenancy(wiring_of(FastAPI()))  # an app without a database

    def question(header: str | None) -> TenantQuestion:
        return TenantQuestion(request=None, principal=None, header=header, state="from-middleware")

    assert await tenancy.resolve(question(None)) == "from-middleware"
    with pytest.raises(UnauthorizedError):
        await tenancy.resolve(question("x"))
    with pytest.raises(ConfigurationError):
        await tenancy.role(Principal(id=uuid4(), email=""), str(uuid4()))
