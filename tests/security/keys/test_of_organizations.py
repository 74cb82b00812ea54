"""Keys that are bound to an organization, and those of its services: what ends them, and what they may do."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security import Organizations
from svc_infra.security.models import Membership, Organization
from tests.security.conftest import Client, assert_problem
from tests.security.keys.conftest import call, made, organization, reader


async def test_a_key_of_one_organization_ends_with_the_membership(cached: Client, sqlite_db: AsyncDatabase) -> None:
    _, owner_id = await reader(cached, sqlite_db, "owner@example.com")
    ana, ana_id = await reader(cached, sqlite_db)
    acme = await organization(sqlite_db, owner_id, member=ana_id)
    key = await made(ana, scopes=["ticket.read", "report.read"], organization_id=str(acme))
    assert (await call(cached, key["key"], "/tenant")).json() == str(acme)
    assert (await call(cached, key["key"], "/ticket")).status_code == 200
    assert_problem(await call(cached, key["key"], "/owner"), 403, "forbidden")
    refused = await call(cached, key["key"], "/tenant", **{"X-Tenant-Id": str(uuid4())})
    assert_problem(refused, 403, "tenant_refused")
    beyond = {"name": "x", "scopes": ["ticket.write"], "organization_id": str(acme)}
    assert_problem(await cached.http.post("/auth/api-keys", json=beyond, headers=ana.bearer), 422, "validation_error")
    membership = select(Membership).where(Membership.user_id == ana_id)
    for role, status in (("nobody", 403), ("admin", 200)):
        async with sqlite_db.session() as session:
            (await session.scalars(membership)).one().role = role
        assert (await call(cached, key["key"], "/ticket")).status_code == status
    async with sqlite_db.session() as session:
        await session.delete((await session.scalars(membership)).one())
    assert_problem(await call(cached, key["key"]), 401, "invalid_token")
    assert_problem(
        await cached.http.post("/auth/api-keys", json={**beyond, "scopes": []}, headers=ana.bearer), 404, "not_found"
    )


async def test_a_users_key_of_one_organization_ends_with_the_organization_at_once(
    cached: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, ana_id = await reader(cached, sqlite_db)
    acme = await organization(sqlite_db, ana_id)
    key, other = await made(ana, organization_id=str(acme)), await made(ana)
    assert (await call(cached, key["key"])).json()["tenant"] == str(acme)
    async with sqlite_db.session() as session:
        await Organizations(session).delete(acme)
    assert_problem(await call(cached, key["key"]), 401, "invalid_token")
    assert (await call(cached, other["key"])).status_code == 200


async def test_a_services_key_acts_for_its_organization_alone(cached: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await reader(cached, sqlite_db)
    eve, eve_id = await reader(cached, sqlite_db, "eve@example.com")
    acme, other = await organization(sqlite_db, ana_id, member=eve_id), await organization(sqlite_db, eve_id)
    wanted = {"scopes": ["ticket.read"], "organization_id": str(acme), "service": True}
    key = await made(ana, **wanted)
    who = (await call(cached, key["key"])).json()
    assert who == {
        "id": key["id"], "scopes": ["ticket.read"], "tenant": str(acme), "service": True,
        "context": [key["id"], key["id"]],
    }  # fmt: skip
    for path, status in {"/service": 200, "/ticket": 200, "/user": 403, "/identity": 403, "/report": 403}.items():
        assert (await call(cached, key["key"], path)).status_code == status, path
    named = {"X-Tenant-Id": str(acme)}
    assert (await call(cached, key["key"], "/tenant", **named)).json() == str(acme)
    refused = await call(cached, key["key"], "/tenant", **{"X-Tenant-Id": str(other)})
    assert_problem(refused, 403, "tenant_refused")

    body = {"name": "x", **wanted}
    assert_problem(await cached.http.post("/auth/api-keys", json=body, headers=eve.bearer), 403, "forbidden")
    path = f"/auth/api-keys/{key['id']}"
    assert_problem(await cached.http.delete(path, headers=eve.bearer), 403, "forbidden")
    listing = f"/auth/api-keys?organization_id={acme}"
    assert_problem(await eve.get(listing), 403, "forbidden")
    assert [one["id"] for one in (await ana.get(listing)).json()] == [key["id"]]
    account_scope = {"name": "x", **wanted, "scopes": ["report.read"]}  # hers, but not the organization's
    answer = await cached.http.post("/auth/api-keys", json=account_scope, headers=ana.bearer)
    assert_problem(answer, 422, "validation_error")
    nowhere = {"name": "x", "service": True}
    assert_problem(await cached.http.post("/auth/api-keys", json=nowhere, headers=ana.bearer), 422, "validation_error")
    async with sqlite_db.session() as session:
        await session.delete(await session.get_one(Organization, acme))
    assert_problem(await call(cached, key["key"]), 401, "invalid_token")
