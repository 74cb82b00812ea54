"""No cache keeps what the rooms of people answer: neither a proxy's nor the browser's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import iter_route_contexts

from svc_infra.api.fastapi.admin import add_admin, admin_router
from svc_infra.db import AsyncDatabase
from svc_infra.jobs.add import add_jobs
from svc_infra.security.accounts.http import accounts_router
from svc_infra.security.aliases import aliases_router
from svc_infra.security.http import Identity, PrivateRoute
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.oauth import github
from svc_infra.security.oauth.add import add_oauth
from svc_infra.security.organizations.add import add_organizations
from svc_infra.tenancy.add import add_tenancy
from svc_infra.testing import FakeClock
from svc_infra.webhooks.add import add_webhooks
from tests.security.conftest import Client, running, service

ROOMS = ("svc_infra.security.", "svc_infra.admin.", "svc_infra.webhooks.")
FOR_EVERYBODY = {"/.well-known/jwks.json"}

mine = APIRouter(prefix="/mine", route_class=PrivateRoute)


@mine.get("/profile")
async def profile(user: Identity) -> str:
    return user.email


@mine.get("/picture")
async def picture(user: Identity) -> Response:
    return Response(b"", headers={"Cache-Control": "private, max-age=60"})


def with_every_room(db: AsyncDatabase, clock: FakeClock) -> FastAPI:
    app = service(db, clock)
    add_jobs(app)
    add_tenancy(app)
    add_mfa(app)
    add_api_keys(app, github_secret_scanning=True)
    add_organizations(app)
    add_oauth(app, providers=[github()])
    add_webhooks(app)
    add_admin(app)
    app.include_router(mine)
    return app


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_ID", "us")
    monkeypatch.setenv("OAUTH_GITHUB_CLIENT_SECRET", "a secret")
    async with running(with_every_room(sqlite_db, clock), clock) as client:
        await client.register()
        yield await client.log_in()


async def test_every_route_of_the_rooms_of_people_is_private(client: Client) -> None:
    routes = [
        (route.path, type(route.original_route))
        for route in iter_route_contexts(list(client.app.routes))
        if getattr(route.endpoint, "__module__", "").startswith(ROOMS)
    ]
    assert len(routes) > 80
    assert {path for path, kind in routes if not issubclass(kind, PrivateRoute)} == FOR_EVERYBODY


async def test_what_an_account_is_shown_is_kept_by_nobody(client: Client) -> None:
    for path in (
        "/auth/me", "/auth/sessions", "/auth/mfa", "/auth/api-keys", "/orgs", "/oauth/identities", "/mine/profile",
    ):  # fmt: skip
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), path
    refused = await client.get("/admin/users")
    assert (refused.status_code, refused.headers["cache-control"]) == (403, "no-store")
    made = await client.http.post("/auth/register", json={"email": "bo@example.com", "password": "another password"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert (await client.get("/.well-known/jwks.json")).headers["cache-control"] == "public, max-age=300"


async def test_a_route_of_the_apps_own_says_something_else(client: Client) -> None:
    assert (await client.get("/mine/picture")).headers["cache-control"] == "private, max-age=60"


def test_routes_for_admins_and_aliases_are_private_too() -> None:
    class Another(PrivateRoute): ...

    assert admin_router().route_class is PrivateRoute
    assert admin_router(route_class=Another).route_class is Another
    aliases = aliases_router(accounts_router("/auth")).routes
    assert aliases
    assert all(isinstance(route, PrivateRoute) for route in aliases)
