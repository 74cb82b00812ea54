"""Limits of single routes, as dependencies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.requests import HTTPConnection
from starlette.testclient import TestClient, WebSocketDenialResponse

from svc_infra import create_app
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, NotFoundError
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.gcra import Rate
from svc_infra.middleware.http import RateLimitPolicy, rate_limit
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore
from svc_infra.obs.context import current
from svc_infra.security import Organizations, Sessions
from svc_infra.security.http import Identity
from svc_infra.security.permissions import RequireUser
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import TenantId
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import call
from tests.security.conftest import Client, running, service

APPS: list[Callable[[], FastAPI]] = [create_app, FastAPI]


@pytest.fixture(params=APPS, ids=["create_app", "plain"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    """An app with a limiter and no limit yet."""
    app: FastAPI = request.param()
    app.add_middleware(RateLimitMiddleware, rate=(), store=MemoryRateLimitStore())
    return app


def as_told(connection: HTTPConnection) -> None:
    """Stands for verification: believes a header."""
    for name in ("principal_id", "tenant_id", "api_key_id"):
        setattr(current(), name, connection.headers.get(name.replace("_", "-"), ""))


def add(app: FastAPI | APIRouter, path: str, *dependencies: Any) -> None:
    @app.get(path, dependencies=list(dependencies))
    async def hello() -> str:
        return "hello"


async def statuses(app: FastAPI, *requests: dict[str, Any]) -> list[int]:
    return [(await call(app, **request)).status for request in requests]


def of(path: str = "/", client: str = "192.0.2.1", **headers: str) -> dict[str, Any]:
    return {
        "path": path,
        "client": (client, 1),
        "headers": [(name.replace("_", "-"), value) for name, value in headers.items()],
    }


async def test_a_route_refuses_what_is_more_than_its_rate(app: FastAPI) -> None:
    add(app, "/", rate_limit("2/minute"))
    add(app, "/free")
    answers = [await call(app) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.header("x-ratelimit-remaining") for answer in answers] == ["1", "0", "0"]
    refused = answers[2]
    assert refused.is_problem(429, "rate_limited")
    assert refused.json["violated-policies"] == ["user-2-60"]
    assert refused.header("retry-after") == "30"
    free = await call(app, path="/free")
    assert free.status == 200
    assert not [name for name, _ in free.headers if "ratelimit" in name]


async def test_the_headers_are_on_the_answers_that_are_errors_too(app: FastAPI) -> None:
    @app.get("/items/{number}", dependencies=[rate_limit("9/minute")])
    async def item(number: int) -> None:
        raise NotFoundError("Item", number)

    if hasattr(app.state, "svc_infra"):  # elsewhere such an error is a 500, which Starlette sends itself
        missing = await call(app, path="/items/1")
        assert (missing.status, missing.header("x-ratelimit-remaining")) == (404, "8")
    wrong = await call(app, path="/items/x")
    assert wrong.status == 422
    assert wrong.header("x-ratelimit-limit") == "9"


async def test_each_route_counts_by_itself_and_all_of_one_name_together(app: FastAPI) -> None:
    router = APIRouter(prefix="/v1", dependencies=[rate_limit("1/minute")])
    add(router, "/a/{key}")
    add(router, "/b/{key}")
    app.include_router(router)
    add(app, "/c", rate_limit("1/minute", name="search"))
    add(app, "/d", rate_limit("1/minute", name="search"))
    paths = ["/v1/a/1", "/v1/a/2", "/v1/b/1", "/v1/b/1", "/c", "/d"]
    assert await statuses(app, *map(of, paths)) == [200, 429, 200, 429, 200, 429]


@pytest.mark.parametrize(
    ("per", "field"), [("user", "principal_id"), ("tenant", "tenant_id"), ("api_key", "api_key_id")]
)
async def test_who_was_verified_is_counted_wherever_the_requests_come_from(app: FastAPI, per: Any, field: str) -> None:
    add(app, "/", Depends(as_told), rate_limit("1/minute", per=per))
    requests = [
        of(client=client, **{field: who}) for who, client in [("a", "1.1.1.1"), ("b", "1.1.1.1"), ("a", "2.2.2.2")]
    ]
    assert await statuses(app, *requests) == [200, 200, 429]


@pytest.mark.parametrize("per", ["user", "tenant", "api_key", "ip"])
async def test_who_was_not_verified_is_counted_by_address_whatever_the_headers_say(app: FastAPI, per: Any) -> None:
    add(app, "/", rate_limit("1/minute", per=per))
    headers = {"X_API_Key": "x", "X_Tenant_Id": "y", "X_Forwarded_For": "9.9.9.9", "principal_id": "z"}
    assert await statuses(app, of(), of(**headers), of(client="192.0.2.2")) == [200, 429, 200]


async def test_a_user_without_a_tenant_or_a_key_is_counted_as_a_user(app: FastAPI) -> None:
    add(app, "/", Depends(as_told), rate_limit("1/minute", per="tenant"))
    requests = [of(principal_id="a"), of(principal_id="b"), of(principal_id="a", client="2.2.2.2"), of(tenant_id="a")]
    assert await statuses(app, *requests) == [200, 200, 429, 200]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_says_who_is_counted_and_what_it_costs(app: FastAPI, is_async: bool) -> None:
    def project(connection: HTTPConnection) -> str | None:
        return connection.path_params["project"] or None

    def size(connection: HTTPConnection) -> int:
        return int(connection.query_params["size"])

    async def async_project(connection: HTTPConnection) -> str | None:
        return project(connection)

    async def async_size(connection: HTTPConnection) -> int:
        return size(connection)

    limit = rate_limit("10/minute", per=async_project if is_async else project, cost=async_size if is_async else size)
    add(app, "/{project}", limit)

    async def answer(project: str, size: int) -> tuple[int, str]:
        answer = await call(app, path=f"/{project}", query=f"size={size}".encode())
        return answer.status, answer.header("x-ratelimit-remaining")

    assert await answer("a", 6) == (200, "4")
    assert await answer("a", 5) == (429, "4")
    assert await answer("b", 5) == (200, "5")
    assert await answer("a", 0) == (200, "4")
    assert await answer("a", 4) == (200, "0")
    refused = await call(app, path="/c", query=b"size=11")
    assert refused.json["detail"] == "This request counts for 11, and at most 10 are ever allowed at once."


async def test_several_limits_of_a_route_are_asked_together_and_a_refusal_charges_none(app: FastAPI) -> None:
    asked: list[int] = []

    class Counted(MemoryRateLimitStore):
        async def take(self, uses: Any) -> Any:
            asked.append(len(uses))
            return await super().take(uses)

    app.user_middleware[0].kwargs["store"] = Counted()
    limit = rate_limit("2/minute", "9/hour", RateLimitPolicy("3/minute", per="tenant"))
    add(app, "/", Depends(as_told), limit)
    users = [of(principal_id=user, tenant_id="t") for user in ("a", "a", "a", "a", "b", "b")]
    assert await statuses(app, *users) == [200, 200, 429, 429, 200, 429]
    assert asked == [3] * 6
    refused = await call(app, **users[0])
    assert refused.json["violated-policies"] == ["user-2-60", "tenant-3-60"]
    policies = [policy.partition(";")[0] for policy in refused.header("ratelimit-policy").split(", ")]
    assert policies == ['"user-2-60"', '"user-9-3600"', '"tenant-3-60"']


async def test_a_tenant_may_have_a_rate_of_its_own(app: FastAPI) -> None:
    plans: dict[str, Rate | str] = {"big": "3/minute", "huge": Rate(4, 60)}

    async def plan(tenant_id: str) -> Rate | str | None:
        return plans.get(tenant_id)

    add(app, "/", Depends(as_told), rate_limit("1/minute", per="tenant", override=plan))

    async def admitted(**who: str) -> int:
        return (await statuses(app, *[of(**who)] * 6)).count(200)

    assert [await admitted(tenant_id=tenant) for tenant in ("small", "big", "huge")] == [1, 3, 4]
    assert await admitted(principal_id="big") == 1  # a user's name is no tenant's
    answer = await call(app, **of(tenant_id="huge"))
    assert answer.header("ratelimit-policy").startswith('"tenant-4-60";q=4;w=60;')


async def test_the_whole_app_and_a_route_count_together_and_the_tightest_is_shown(app: FastAPI) -> None:
    app.user_middleware[0].kwargs["rate"] = "4/minute"
    add(app, "/", rate_limit("3/minute"))
    add(app, "/other")
    answer = await call(app)
    assert (answer.header("x-ratelimit-limit"), answer.header("ratelimit").count(";r=")) == ("3", 2)
    await call(app, path="/other")
    await call(app, path="/other")
    answer = await call(app)
    assert (answer.status, answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")) == (
        200,
        "4",
        "0",
    )
    assert (await call(app)).json["violated-policies"] == ["ip-4-60"]


def test_a_websockets_handshake_is_limited(app: FastAPI) -> None:
    @app.websocket("/socket", dependencies=[rate_limit("1/minute")])
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    client = TestClient(app)
    with client.websocket_connect("/socket") as accepted:
        assert accepted.extra_headers
        assert b"x-ratelimit-remaining" in dict(accepted.extra_headers)
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/socket"):
        pass
    assert (refused.value.status_code, refused.value.json()["code"]) == (429, "rate_limited")
    assert refused.value.headers["x-ratelimit-remaining"] == "0"


async def test_a_preflight_that_reaches_a_limited_route_is_not_limited(app: FastAPI) -> None:
    @app.options("/", dependencies=[rate_limit("1/minute")])
    async def options() -> str:
        return "GET"

    preflight = {"method": "OPTIONS", "headers": [("Access-Control-Request-Method", "PUT")]}
    assert await statuses(app, preflight, preflight, preflight) == [200, 200, 200]


async def test_without_the_middleware_a_limit_refuses_and_names_the_mend() -> None:
    app = create_app()
    add(app, "/", rate_limit("1/minute"))
    refused = await call(app)
    assert refused.is_problem(500, "configuration_error")
    assert "app.add_middleware(RateLimitMiddleware)" in refused.json["detail"]


async def test_a_cost_below_nothing_is_an_error_and_no_credit(app: FastAPI) -> None:
    add(app, "/", rate_limit("1/minute", cost=lambda connection: -5))
    if hasattr(app.state, "svc_infra"):
        assert (await call(app)).is_problem(500, "configuration_error")
    else:
        with pytest.raises(ConfigurationError, match="cannot cost -5"):
            await call(app)


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        ([], {}, "without a rate"),
        (["often"], {}, "'often' is no rate"),
        (["1/s"], {"per": "browser"}, "use user, tenant, api_key, ip or a function"),
        (["1/s"], {"name": 'a"b'}, "names no rate limit"),
        (["1/s", "1/1 second"], {}, "give one another name"),
    ],
)
def test_a_wrong_limit_is_told_where_it_is_written(arguments: list[Any], options: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        rate_limit(*arguments, **options)


class TestWithAccounts:
    """The identities are those that this library's rooms verify, wherever the limit stands."""

    @pytest.fixture
    async def client(self, sqlite_db: AsyncDatabase) -> AsyncIterator[Client]:
        clock = FakeClock()
        app = service(sqlite_db, clock)
        add_tenancy(app)
        app.add_middleware(RateLimitMiddleware, rate=(), store=MemoryRateLimitStore())

        @app.get("/before", dependencies=[rate_limit("1/minute", per="user")])
        async def before(user: Identity) -> str:
            return str(user.id)

        @app.get("/after", dependencies=[RequireUser(), rate_limit("1/minute", per="user")])
        async def after() -> str:
            return "hello"

        @app.get("/parameter")
        async def parameter(user: Identity, _: Annotated[None, rate_limit("1/minute", per="user")]) -> str:
            return str(user.id)

        @app.get("/tenant", dependencies=[rate_limit("1/minute", per="tenant")])
        async def tenant(tenant_id: TenantId) -> str:
            return tenant_id

        async with running(app, clock) as client:
            yield client

    async def logged_in(self, client: Client, email: str) -> Client:
        await client.register(email)
        return await client.log_in(email)

    @pytest.mark.parametrize("path", ["/before", "/after", "/parameter"])
    async def test_users_behind_one_address_are_counted_apart(self, client: Client, path: str) -> None:
        ana, bob = await self.logged_in(client, "ana@example.com"), await self.logged_in(client, "bob@example.com")
        assert [(await who.get(path)).status_code for who in (ana, bob, ana, bob)] == [200, 200, 429, 429]

    async def test_a_token_that_is_not_valid_is_refused_and_makes_nobody_another(self, client: Client) -> None:
        ana = await self.logged_in(client, "ana@example.com")
        assert (await ana.get("/before", Authorization="Bearer nonsense")).status_code == 401
        assert (await ana.get("/before")).status_code == 200
        assert (await ana.get("/before", **{"X-Api-Key": "new", "X-Forwarded-For": "1.2.3.4"})).status_code == 429

    async def test_a_token_is_verified_once_for_the_limit_and_the_route(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ana, seen = await self.logged_in(client, "ana@example.com"), []
        sessions = wiring_of(client.app).get(Sessions)
        verify = sessions.principal

        async def principal(token: str, **options: Any) -> Any:
            seen.append(token)
            return await verify(token, **options)

        monkeypatch.setattr(sessions, "principal", principal)
        assert (await ana.get("/before")).status_code == 200
        assert len(seen) == 1

    async def test_members_of_a_tenant_share_its_limit_and_a_header_alone_gives_no_other(
        self, client: Client, sqlite_db: AsyncDatabase
    ) -> None:
        ids = [await client.register(f"{name}@example.com") for name in ("ana", "bob")]
        ana, bob = [await client.log_in(f"{name}@example.com") for name in ("ana", "bob")]
        async with sqlite_db.session() as session:
            organizations = Organizations(session)
            first = await organizations.create(name="first", owner_id=ids[0])
            await organizations.add_member(first.id, ids[1], role="member")
            second = await organizations.create(name="second", owner_id=ids[1])
        one, two = {"X-Tenant-Id": str(first.id)}, {"X-Tenant-Id": str(second.id)}
        assert (await ana.get("/tenant", **one)).status_code == 200
        assert (await bob.get("/tenant", **one)).status_code == 429
        assert (await ana.get("/tenant", **two)).status_code == 403  # she is no member
        assert (await bob.get("/tenant", **two)).status_code == 200
