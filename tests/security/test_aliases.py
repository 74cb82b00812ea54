from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.security import MailQueue
from svc_infra.security.add import add_auth_users
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, Mailbox, assert_problem, running

ANA = "ana@example.com"


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    app = create_app(settings=Settings(app={"env": "test"}, auth={"hash_memory_kib": 64, "hash_passes": 1}))
    add_db(app, database=sqlite_db)
    add_auth_users(app, prefix="/identity", aliases=True)
    wiring_of(app).provide(MailQueue, Mailbox())
    wiring_of(app).provide(Clock, clock)
    async with running(app, clock) as client:
        yield client


async def test_a_client_of_an_earlier_generation_finds_its_paths(client: Client) -> None:
    http = client.http
    assert (await http.post("/users/register", json={"email": ANA, "password": PASSWORD})).status_code == 201
    token = client.mailbox.token("verify", ANA)
    assert (await http.post("/users/verify", json={"token": token})).status_code == 204
    form = {"username": " ANA@example.com", "password": PASSWORD}
    answer = await http.post("/users/login", data=form)
    assert answer.headers["cache-control"] == "no-store"
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await http.get("/users/me", headers=bearer)).json()["email"] == ANA
    assert (await http.patch("/users/me", json={"full_name": "Ana"}, headers=bearer)).status_code == 200
    [login] = (await http.get("/users/sessions/me", headers=bearer)).json()
    assert (await http.post(f"/users/sessions/{login['id']}/revoke", headers=bearer)).status_code == 204
    assert_problem(await http.get("/identity/me", headers=bearer), 401, "invalid_token")
    for path in ("/users/request-verify-token", "/users/forgot-password"):
        assert (await http.post(path, json={"email": ANA})).status_code == 202
    reset = {"token": client.mailbox.token("reset", ANA), "password": "another horse battery"}
    assert (await http.post("/users/reset-password", json=reset)).status_code == 204
    for path, status in (("disable", 204), ("delete", 401)):
        answer = await http.post("/users/login", data={**form, "password": reset["password"]})
        bearer = {"Authorization": f"Bearer {answer.json().get('access_token', '')}"}
        method = "PATCH" if path == "disable" else "DELETE"
        done = await http.request(method, f"/users/{path}", json={"password": reset["password"]}, headers=bearer)
        assert done.status_code == status


async def test_a_form_of_another_kind_is_refused(client: Client) -> None:
    for form in ({}, {"username": ANA}, {"username": "x" * 300, "password": "x"}, {"username": ANA, "password": ""}):
        assert_problem(await client.http.post("/users/login", data=form), 422, "validation_error")


async def test_they_are_left_out_of_the_documentation_and_of_apps_that_did_not_ask(client: Client) -> None:
    assert not [path for path in client.app.openapi()["paths"] if path.startswith("/users")]
    other = create_app(settings=Settings(app={"env": "test"}))
    add_auth_users(other)
    assert not [path for path in other.openapi()["paths"] if path.startswith("/users")]
    assert "/users/login" not in {getattr(route, "path", "") for route in other.routes}
