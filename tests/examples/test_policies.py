"""Who may call what in the tracker: each route as each caller, in the own tenant and in another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.security.organizations import Organizations
from svc_infra.testing import Matrix, check_matrix, routes_without_policy
from svc_infra.wiring import wiring_of
from tracker.app import create

PASSWORD = "correct horse battery"
CSV: dict[str, Any] = {"files": {"file": ("tickets.csv", b"title\nOne\n", "text/csv")}}
ELSEWHERE = ["/admin", "/auth", "/organizations", "/webhooks"]

CALLERS = ["nobody", "wrong token", "owner", "member", "stranger", "intruder", "member of nothing"]
ROWS = {
    "POST /projects": (401, 401, 201, 201, 201, 403, 400),
    "GET /projects": (401, 401, 200, 200, 200, 403, 400),
    "POST /projects/{project_id}/tickets": (401, 401, 201, 201, 404, 403, 400),
    "GET /projects/{project_id}/tickets": (401, 401, 200, 200, 404, 403, 400),
    "PATCH /tickets/{ticket_id}": (401, 401, 200, 200, 404, 403, 400),
    "POST /projects/{project_id}/imports": (401, 401, 202, 202, 404, 403, 400),
    "GET /imports/{import_id}": (401, 401, 200, 200, 404, 403, 400),
}


@pytest.fixture
async def app(migrated_sqlite_url: str) -> AsyncIterator[FastAPI]:
    cheap = {"hash_memory_kib": 64, "hash_passes": 1}
    app = create(Settings(app={"env": "test"}, auth=cheap, sql={"url": migrated_sqlite_url}))
    async with app.router.lifespan_context(app):
        with wiring_of(app).active():
            yield app


async def bearer(http: httpx2.AsyncClient, name: str) -> tuple[dict[str, str], UUID]:
    account = {"email": f"{name}@example.com", "password": PASSWORD}
    user_id = (await http.post("/auth/register", json=account)).json()["id"]
    token = (await http.post("/auth/login", json=account)).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}, UUID(user_id)


@pytest.fixture
async def matrix(app: FastAPI) -> Matrix:
    """The table, for people in two organizations and things in the first."""
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://test") as http:
        people = {name: await bearer(http, name) for name in ("owner", "member", "stranger", "loner")}
        async with wiring_of(app).get(AsyncDatabase).session() as session:
            organizations = Organizations(session)
            acme = await organizations.create(name="Acme", owner_id=people["owner"][1])
            await organizations.add_member(acme.id, people["member"][1])
            await organizations.create(name="Other", owner_id=people["stranger"][1])
        owner, tenant = people["owner"][0], {"X-Tenant-Id": str(acme.id)}
        project = (await http.post("/projects", json={"name": "Website"}, headers=owner)).json()["id"]
        tickets = f"/projects/{project}/tickets"
        ticket = (await http.post(tickets, json={"title": "Broken"}, headers=owner)).json()["id"]
        upload = (await http.post(f"/projects/{project}/imports", headers=owner, **CSV)).json()["id"]
    headers = [
        {}, {"Authorization": "Bearer x.y.z"}, {**owner, **tenant}, {**people["member"][0], **tenant},
        people["stranger"][0], {**people["stranger"][0], **tenant}, people["loner"][0],
    ]  # fmt: skip
    return Matrix(
        callers=dict(zip(CALLERS, headers, strict=True)),
        rows=ROWS,
        values={"project_id": project, "ticket_id": ticket, "import_id": upload},
        requests={
            "POST /projects": {"json": {"name": "App"}},
            "POST /projects/{project_id}/tickets": {"json": {"title": "Slow"}},
            "PATCH /tickets/{ticket_id}": {"json": {"status": "closed"}},
            "POST /projects/{project_id}/imports": CSV,
        },
        elsewhere=ELSEWHERE,
    )


async def test_the_tracker_answers_every_caller_as_the_matrix_says(app: FastAPI, matrix: Matrix) -> None:
    assert routes_without_policy(app) == []
    await check_matrix(app, matrix)


async def test_the_matrix_tells_everything_that_differs(app: FastAPI, matrix: Matrix) -> None:
    rows = {
        "GET /projects": (200, 401, 404, 200, 200, 403, 400),
        "GET /imports/{import_id}": (401, 401, 200, 200, 200, 200, 400),
        "GET /nowhere": (404,) * 7,
        "PATCH /tickets/{ticket_id}": (401, 200),
    }
    with pytest.raises(AssertionError) as caught:
        await check_matrix(app, replace(matrix, rows=rows, elsewhere=ELSEWHERE))
    assert str(caught.value).splitlines()[1:] == [
        "POST /projects has no row",
        "POST /projects/{project_id}/tickets has no row",
        "GET /projects/{project_id}/tickets has no row",
        "POST /projects/{project_id}/imports has no row",
        "GET /nowhere is no route of the app",
        "GET /projects: nobody got 401 instead of 200",
        "GET /projects: owner got 200 instead of 404",
        "GET /imports/{import_id}: stranger got 404 instead of 200",
        "GET /imports/{import_id}: intruder got 403 instead of 200",
        "PATCH /tickets/{ticket_id}: 2 statuses for 7 callers",
    ]


async def test_a_route_that_was_added_needs_a_row(app: FastAPI, matrix: Matrix) -> None:
    @app.get("/forgotten/{thing_id}")
    async def forgotten() -> None: ...

    with pytest.raises(AssertionError, match=r"GET /forgotten/\{thing_id\} has no row"):
        await check_matrix(app, replace(matrix, values={**matrix.values, "thing_id": str(uuid4())}))
