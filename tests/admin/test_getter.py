"""Users whom the app finds itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from svc_infra.db import AsyncDatabase
from svc_infra.security.http import Identity
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import OptionalTenantId
from svc_infra.testing import FakeClock
from tests.admin.conftest import Person, Stage, an_app, staged
from tests.security.conftest import assert_problem


@dataclass
class Customers:
    """The users of another system; it is asked with every request."""

    found: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, request: Any, user_id: str) -> Any:
        self.asked.append((request.url.path, user_id))
        if self.error is not None:
            raise self.error
        if user_id not in self.found:
            raise HTTPException(404, "user_not_found")
        return self.found[user_id]


@pytest.fixture
def customers() -> Customers:
    return Customers({"u-12345": SimpleNamespace(id="u-12345", email="eve@customer.example", roles=["customer"])})


@pytest.fixture
async def stage(sqlite_db: AsyncDatabase, clock: FakeClock, customers: Customers) -> AsyncIterator[Stage]:
    app = an_app(sqlite_db, clock, impersonation_user_getter=customers)
    add_tenancy(app)
    add_routes(app)
    async with staged(app, sqlite_db, clock) as stage:
        yield stage


def add_routes(app: FastAPI) -> None:
    @app.get("/api/v1/profile")
    async def profile(request: Request, user: Identity) -> dict[str, Any]:
        assert request.user is user
        return {"id": str(request.user.id), "email": request.user.email, "roles": sorted(request.user.roles)}

    @app.get("/tenant")
    async def tenant(tenant: OptionalTenantId) -> str | None:
        return tenant

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, user: Identity) -> None:
        await websocket.accept()
        await websocket.send_text(str(user.id))
        await websocket.close()


async def test_an_id_of_any_form_is_a_user(stage: Stage, customers: Customers) -> None:
    ada = await stage.person("ada")
    assert (await ada.start("u-12345")).status_code == 204
    profile = (await ada.send("GET", "/api/v1/profile")).json()
    assert profile == {"id": "u-12345", "email": "eve@customer.example", "roles": ["admin"]}
    assert customers.asked == [("/admin/impersonate/start", "u-12345"), ("/api/v1/profile", "u-12345")]
    await ada.send("POST", "/notes")
    [note] = await stage.entries("note.")
    assert (note.actor_id, note.acting_as) == (str(ada.id), "u-12345")
    assert (await ada.send("GET", "/tenant")).json() is None  # no member of anything of ours
    headers = {"X-Tenant-Id": str(stage.ids["bob"])}
    assert_problem(await ada.send("GET", "/tenant", headers=headers), 403, "tenant_refused")


async def test_what_the_getter_raises_is_the_answer_and_nobody_is_nobody(stage: Stage, customers: Customers) -> None:
    ada = await stage.person("ada")
    assert (await ada.start("u-0")).json()["detail"] == "user_not_found"
    customers.found["u-0"] = None
    assert_problem(await ada.start("u-0"), 404, "not_found")
    customers.found["u-0"] = SimpleNamespace(id="u-0", is_active=False)
    assert_problem(await ada.start("u-0"), 404, "not_found")
    assert await stage.rows() == []


async def gone(customers: Customers) -> None:
    del customers.found["u-12345"]


async def disabled(customers: Customers) -> None:
    customers.found["u-12345"].is_active = False


async def raised(customers: Customers) -> None:
    customers.found["u-12345"].roles = "admin"  # a single role may be a text


async def another(customers: Customers) -> None:
    customers.found["u-12345"] = SimpleNamespace(id="u-666")


async def test_it_ends_when_the_app_does_not_find_the_same_user_any_more(stage: Stage, customers: Customers) -> None:
    ada, before = await stage.person("ada"), dict(customers.found)
    for change in (gone, disabled, raised, another):
        customers.found = {name: SimpleNamespace(**vars(user)) for name, user in before.items()}
        assert (await ada.start("u-12345")).status_code == 204, change
        await change(customers)
        assert_problem(await ada.send("GET", "/whoami"), 403, "impersonation_ended")
        customers.found = dict(before)
        assert (await ada.whoami())["id"] == str(ada.id), change


async def test_while_the_app_cannot_say_nothing_is_done_and_nothing_ends(stage: Stage, customers: Customers) -> None:
    ada = await stage.person("ada")
    await ada.start("u-12345")
    for error, status in ((RuntimeError("down"), 500), (HTTPException(503), 503)):
        customers.error = error
        assert (await ada.send("POST", "/notes")).status_code == status
    customers.error = None
    assert await stage.entries("note.") == []
    assert (await ada.whoami())["id"] == "u-12345"


async def test_what_the_library_knows_of_the_same_user_counts_too(stage: Stage, customers: Customers) -> None:
    ada = await stage.person("ada")
    for name in ("abe", "bob"):
        customers.found[str(stage.ids[name])] = SimpleNamespace(id=stage.ids[name])  # the getter says nothing of roles
    assert_problem(await ada.start(stage.ids["abe"]), 403, "forbidden")
    assert (await ada.start(stage.ids["bob"])).status_code == 204
    assert (await ada.whoami())["email"] == stage.email("bob")
    async with stage.db.session() as session:
        await stage.accounts.disable(session, stage.ids["bob"], reason="gone")
    assert_problem(await ada.send("GET", "/whoami"), 403, "impersonation_ended")


async def test_a_user_without_an_id_is_a_mistake_of_the_app(stage: Stage, customers: Customers) -> None:
    ada = await stage.person("ada")
    for user in (SimpleNamespace(), SimpleNamespace(id=""), SimpleNamespace(id="a b"), SimpleNamespace(id="x" * 65)):
        customers.found["u-1"] = user
        problem = assert_problem(await ada.start("u-1"), 500, "configuration_error")
        assert "impersonation_user_getter" in problem["detail"]


async def test_a_getter_may_be_plain(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = an_app(sqlite_db, clock, impersonation_user_getter=lambda request, user_id: SimpleNamespace(id=user_id))
    async with staged(app, sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        assert (await ada.start("u-target")).status_code == 204
        assert (await ada.whoami())["id"] == "u-target"


def a_socket(person: Person, **headers: str) -> str:
    cookies = "; ".join(f"{name}={value}" for name, value in person.http.cookies.items())
    client = TestClient(person.app)
    with client.websocket_connect("/socket", headers={**person.bearer, "Cookie": cookies, **headers}) as socket:
        return str(socket.receive_text())


async def test_a_websocket_is_opened_as_the_user_but_not_to_look_only(stage: Stage) -> None:
    ada = await stage.person("ada")
    await ada.start("u-12345")
    assert a_socket(ada) == "u-12345"
    await ada.stop()
    await ada.start("u-12345", read_only=True)
    with pytest.raises(WebSocketDisconnect):
        a_socket(ada)
