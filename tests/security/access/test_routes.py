"""Every route says who may call it."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError
from svc_infra.security.access import declares
from svc_infra.security.access.http import public, route_policies, routes_without_policy
from svc_infra.security.add import add_auth_users, add_security
from svc_infra.security.http import Identity, OptionalIdentity
from svc_infra.security.permissions import RequirePermission
from svc_infra.tenancy.http import OptionalTenantId, TenantId


def silent(app: FastAPI) -> list[str]:
    return [str(route) for route in routes_without_policy(app)]


def an_app(**settings: object) -> FastAPI:
    return create_app(settings=Settings(app={"env": "test"}, **settings))


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def profile(user: Identity) -> str:
    return user.email


def test_every_route_of_the_library_declares_a_policy() -> None:
    app = an_app()
    add_auth_users(app, aliases=True)
    assert silent(app) == []
    declared = {route.path: route.policies for route in route_policies(app)}
    assert declared["/metrics"] == declared["/_ops/ready"] == declared["/openapi.json"] == ("public",)
    assert declared["/auth/login"] == declared["/users/login"] == declared["/users/register"] == ("public",)
    assert "login" in declared["/auth/password"]


def test_routes_that_say_nothing_are_found_wherever_they_are() -> None:
    app, child, router = an_app(), FastAPI(openapi_url=None), APIRouter(prefix="/router")

    @app.get("/plain")
    async def plain() -> None: ...

    @app.api_route("/perhaps", methods=["GET", "POST"])
    async def perhaps(user: OptionalIdentity, tenant: OptionalTenantId) -> None: ...

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None: ...

    @child.delete("/thing")
    async def thing() -> None: ...

    @router.get("/one")
    async def one() -> None: ...

    app.include_router(router, prefix="/v1")
    app.mount("/child", child)
    app.mount("/files", PlainTextResponse("a file"))
    app.router.routes += [Route("/starlette", page), Mount("/nested", routes=[Route("/deep", page, methods=["POST"])])]
    assert silent(app) == [
        "GET /plain",
        "GET,POST /perhaps",
        "/socket",
        "GET /v1/router/one",
        "DELETE /child/thing",
        "/files",
        "GET /starlette",
        "POST /nested/deep",
    ]


def test_what_a_dependency_of_a_dependency_requires_counts_and_so_does_a_routers() -> None:
    app, guarded = an_app(), APIRouter(dependencies=[RequirePermission("report.read")])

    @declares("signature of the provider")
    async def signed(request: Request) -> None: ...

    @app.get("/profile")
    async def show(found: Annotated[str, Depends(profile)]) -> None: ...

    @app.get("/tenant")
    async def tenant(tenant_id: TenantId) -> None: ...

    @app.post("/hook", dependencies=[Depends(signed)])
    async def hook() -> None: ...

    @app.get("/open", dependencies=[public()])
    async def opened() -> None: ...

    @guarded.get("/report")
    async def report() -> None: ...

    app.include_router(guarded)
    app.mount("/files", declares("public")(PlainTextResponse("a file")))
    app.router.routes.append(Route("/starlette", declares("public")(page)))
    assert silent(app) == []
    declared = {route.path: route.policies for route in route_policies(app)}
    assert "permission report.read" in declared["/report"]
    assert declared["/hook"] == ("signature of the provider",)


@pytest.mark.parametrize("by_setting", [True, False])
async def test_a_strict_app_with_a_silent_route_does_not_start(by_setting: bool) -> None:
    app = an_app(security={"strict_routes": by_setting})
    add_security(app, strict_routes=not by_setting)
    add_security(app)

    @app.get("/open", dependencies=[public()])
    async def opened() -> None: ...

    async with app.router.lifespan_context(app):
        pass

    @app.get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(ConfigurationError, match="GET /forgotten"):
        async with app.router.lifespan_context(app):
            pass


async def test_an_app_that_is_not_strict_starts_with_silent_routes() -> None:
    app = an_app()
    add_security(app)

    @app.get("/forgotten")
    async def forgotten() -> None: ...

    async with app.router.lifespan_context(app):
        pass
