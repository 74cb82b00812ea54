"""The `/orgs` routes: who does what in an organization, and how others come to belong to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.security.access.http import routes_without_policy
from svc_infra.security.audit import AuditEntry
from svc_infra.security.models import Membership, User
from svc_infra.security.organizations import Invitation, Organizations, TeamMember
from svc_infra.security.organizations.add import add_organizations
from svc_infra.security.permissions import register_role
from svc_infra.tenancy.http import RequireTenantPermission
from svc_infra.testing import FakeClock
from tests.security.conftest import Client, assert_problem, running
from tests.security.keys.conftest import call, made, with_keys


def with_organizations(db: AsyncDatabase, clock: FakeClock) -> FastAPI:
    app = with_keys(db, clock)
    add_organizations(app, invitation_ttl_seconds=3600)
    add_organizations(app)
    register_role(app, "treasurer", ["invoice.pay"], in_organizations=True)

    @app.get("/pay", dependencies=[RequireTenantPermission("invoice.pay")])
    async def pay() -> None: ...

    return app


@pytest.fixture
async def client(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(with_organizations(db, clock), clock) as client:
        yield client


@pytest.fixture
async def here(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """For what does not depend on the engine."""
    async with running(with_organizations(sqlite_db, clock), clock) as client:
        yield client


async def person(client: Client, db: AsyncDatabase, name: str, *, verified: bool = True) -> tuple[Client, str]:
    """Somebody who is logged in, and their id."""
    email = f"{name}@example.com"
    user_id = await client.register(email)
    async with db.session() as session:
        (await session.get_one(User, user_id)).is_verified = verified
    return await client.log_in(email), str(user_id)


async def ask(client: Client, method: str, path: str, **body: Any) -> httpx2.Response:
    given: dict[str, Any] = {"json": body} if body else {}
    return await client.http.request(method, path, headers=client.bearer, **given)


async def founded(client: Client, name: str = "Acme") -> str:
    answer = await ask(client, "POST", "/orgs", name=name)
    assert answer.status_code == 201, answer.text
    return f"/orgs/{answer.json()['id']}"


async def invited(client: Client, org: str, name: str, role: str = "member") -> str:
    """The token of a new invitation."""
    email = f"{name}@example.com"
    answer = await ask(client, "POST", f"{org}/invitations", email=email.upper(), role=role)
    assert answer.status_code == 201, answer.text
    token = client.mailbox.token("invitation", email)
    assert token not in answer.text
    return token


async def joined(owner: Client, org: str, db: AsyncDatabase, name: str, role: str = "member") -> tuple[Client, str]:
    somebody, user_id = await person(owner, db, name)
    answer = await ask(somebody, "POST", "/orgs/invitations/accept", token=await invited(owner, org, name, role))
    assert answer.json() == {"organization_id": org.removeprefix("/orgs/"), "role": role}
    return somebody, user_id


async def roles(db: AsyncDatabase) -> dict[str, str]:
    async with db.session(read_only=True) as session:
        rows = await session.execute(select(User.email, Membership.role).join(User, User.id == Membership.user_id))
        return {email.partition("@")[0]: role for email, role in rows}


async def test_who_is_invited_becomes_a_member_with_the_role_of_the_invitation(
    client: Client, db: AsyncDatabase
) -> None:
    ana, ana_id = await person(client, db, "ana")
    org = await founded(ana)
    bob, bob_id = await joined(ana, org, db, "bob", "admin")
    assert (await ask(bob, "GET", "/orgs")).json() == [
        {"id": org.removeprefix("/orgs/"), "name": "Acme", "slug": "acme", "role": "admin"}
    ]
    assert (await ask(bob, "GET", f"{org}/members")).json() == [
        {"user_id": ana_id, "email": "ana@example.com", "role": "owner"},
        {"user_id": bob_id, "email": "bob@example.com", "role": "admin"},
    ]
    assert (await ask(ana, "GET", f"{org}/invitations")).json() == []


async def test_what_a_key_does_is_on_record_under_the_key(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    _, bob_id = await joined(ana, org, sqlite_db, "bob")
    key = await made(ana, scopes=["organization.member.write"], organization_id=org.removeprefix("/orgs/"))
    answer = await here.http.delete(f"{org}/members/{bob_id}", headers={"X-API-Key": key["key"]})
    assert answer.status_code == 204, answer.text
    async with sqlite_db.session(read_only=True) as session:
        entries = list(await session.scalars(select(AuditEntry).where(AuditEntry.actor_id == ana_id)))
    named = {entry.action: entry.api_key_id for entry in entries}
    assert (named["membership.removed"], named["api_key.created"]) == (key["id"], "")


async def test_of_many_acceptances_at_once_one_makes_a_member(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await person(client, db, "ana")
    bob, _ = await person(client, db, "bob")
    token = await invited(ana, await founded(ana), "bob")
    answers = await asyncio.gather(*(ask(bob, "POST", "/orgs/invitations/accept", token=token) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    async with db.session(read_only=True) as session:
        actions = list(await session.scalars(select(AuditEntry.action)))
    assert actions.count("invitation.accepted") == 1


async def test_an_invitation_is_good_for_its_own_proven_address_once_and_for_a_while(
    here: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    eve, _ = await person(here, sqlite_db, "eve")
    bob, bob_id = await person(here, sqlite_db, "bob", verified=False)
    org = await founded(ana)
    old, token = await invited(ana, org, "bob"), await invited(ana, org, "bob")
    accept = "/orgs/invitations/accept"
    assert_problem(await ask(eve, "POST", accept, token=token), 400, "bad_request")
    assert_problem(await ask(bob, "POST", accept, token=token), 403, "forbidden")
    async with sqlite_db.session() as session:
        (await session.get_one(User, UUID(bob_id))).is_verified = True
    for wrong in (old, "x", token[:-1]):
        assert_problem(await ask(bob, "POST", accept, token=wrong), 400, "bad_request")
    here.clock.advance(3600)
    ana, bob = await here.log_in("ana@example.com"), await here.log_in("bob@example.com")
    assert_problem(await ask(bob, "POST", accept, token=token), 400, "bad_request")
    token = await invited(ana, org, "bob")
    assert (await ask(bob, "POST", accept, token=token)).status_code == 200
    assert_problem(await ask(bob, "POST", accept, token=token), 400, "bad_request")
    again = await invited(ana, org, "bob")
    assert_problem(await ask(bob, "POST", accept, token=again), 409, "conflict")
    async with sqlite_db.session(read_only=True) as session:
        stored = list(await session.scalars(select(Invitation.token_hash)))
    assert token not in stored
    assert await roles(sqlite_db) == {"ana": "owner", "bob": "member"}


async def test_a_revoked_invitation_and_one_of_who_left_open_nothing(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    bob, _ = await person(here, sqlite_db, "bob")
    org = await founded(ana)
    token = await invited(ana, org, "bob")
    invitation = (await ask(ana, "GET", f"{org}/invitations")).json()[0]
    other = await founded(ana, "Other")
    assert_problem(await ask(ana, "DELETE", f"{other}/invitations/{invitation['id']}"), 404, "not_found")
    assert (await ask(ana, "DELETE", f"{org}/invitations/{invitation['id']}")).status_code == 204
    assert_problem(await ask(ana, "DELETE", f"{org}/invitations/{invitation['id']}"), 404, "not_found")
    async with sqlite_db.session(read_only=True) as session:
        ended = select(AuditEntry.target).where(AuditEntry.action == "invitation.revoked")
        assert list(await session.scalars(ended)) == [f"invitation:{invitation['id']}"]
    assert_problem(await ask(bob, "POST", "/orgs/invitations/accept", token=token), 400, "bad_request")

    _, cid_id = await joined(ana, org, sqlite_db, "cid", "admin")
    cid = await here.log_in("cid@example.com")
    for end in (("PATCH", {"role": "member"}), ("DELETE", {})):
        await ask(ana, "PATCH", f"{org}/members/{cid_id}", role="admin")
        token = await invited(cid, org, "bob", "admin")
        assert (await ask(ana, end[0], f"{org}/members/{cid_id}", **end[1])).status_code == 204
        assert_problem(await ask(bob, "POST", "/orgs/invitations/accept", token=token), 400, "bad_request")


async def test_nobody_gives_or_takes_what_permits_more_than_they_may(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    bob, bob_id = await joined(ana, org, sqlite_db, "bob", "admin")
    cid, cid_id = await joined(ana, org, sqlite_db, "cid")
    for method, path, body in [
        ("PATCH", f"{org}/members/{bob_id}", {"role": "owner"}),
        ("PATCH", f"{org}/members/{ana_id}", {"role": "member"}),
        ("DELETE", f"{org}/members/{ana_id}", {}),
        ("PATCH", f"{org}/members/{cid_id}", {"role": "treasurer"}),
        ("POST", f"{org}/invitations", {"email": "x@example.com", "role": "owner"}),
        ("POST", f"{org}/invitations", {"email": "x@example.com", "role": "treasurer"}),
        ("DELETE", org, {}),
    ]:
        assert_problem(await ask(bob, method, path, **body), 403, "forbidden")
        assert_problem(await ask(cid, method, path, **body), 403, "forbidden")
    for role in ("", "emperor", "x" * 33):
        answer = await ask(ana, "PATCH", f"{org}/members/{cid_id}", role=role)
        assert_problem(answer, 422, "validation_error")
    assert await roles(sqlite_db) == {"ana": "owner", "bob": "admin", "cid": "member"}
    assert (await ask(bob, "PATCH", f"{org}/members/{cid_id}", role="admin")).status_code == 204
    assert (await ask(cid, "DELETE", f"{org}/members/{bob_id}")).status_code == 204
    assert await roles(sqlite_db) == {"ana": "owner", "cid": "admin"}


async def test_the_last_owner_stays_even_when_two_leave_at_once(client: Client, db: AsyncDatabase) -> None:
    ana, ana_id = await person(client, db, "ana")
    org = await founded(ana)
    for answer in [
        await ask(ana, "POST", f"{org}/leave"),
        await ask(ana, "PATCH", f"{org}/members/{ana_id}", role="member"),
        await ask(ana, "DELETE", f"{org}/members/{ana_id}"),
    ]:
        assert_problem(answer, 409, "conflict")
    bob, bob_id = await joined(ana, org, db, "bob", "admin")
    assert (await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="owner")).status_code == 204
    answers = await asyncio.gather(*(ask(one, "POST", f"{org}/leave") for one in (ana, bob)))
    assert sorted(answer.status_code for answer in answers) == [204, 409]
    assert list((await roles(db)).values()) == ["owner"]


async def test_for_strangers_and_for_keys_of_others_there_is_no_such_organization(
    here: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, ana_id = await person(here, sqlite_db, "ana")
    eve, _ = await person(here, sqlite_db, "eve")
    org, other = await founded(ana), await founded(ana, "Other")
    for method, path, body in [
        ("GET", org, {}), ("PATCH", org, {"name": "Mine"}), ("DELETE", org, {}), ("GET", f"{org}/members", {}),
        ("DELETE", f"{org}/members/{ana_id}", {}), ("POST", f"{org}/leave", {}), ("GET", f"{org}/invitations", {}),
        ("POST", f"{org}/invitations", {"email": "eve@example.com"}), ("POST", f"{org}/teams", {"name": "x"}),
        ("GET", f"/orgs/{uuid4()}", {}),
    ]:  # fmt: skip
        assert_problem(await ask(eve, method, path, **body), 404, "not_found")
    org_id = org.removeprefix("/orgs/")
    key = (await made(ana, scopes=["organization.read"], organization_id=org_id))["key"]
    assert (await call(here, key, org)).json()["name"] == "Acme"
    assert [one["id"] for one in (await call(here, key, "/orgs")).json()] == [org_id]
    assert_problem(await call(here, key, other), 404, "not_found")
    assert_problem(await call(here, key, f"{org}/members"), 403, "forbidden")
    service = (await made(ana, scopes=["organization.read"], organization_id=org_id, service=True))["key"]
    assert_problem(await call(here, service, org), 403, "forbidden")


async def test_an_organization_is_renamed_and_ended_by_who_may(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    bob, _ = await joined(ana, org, sqlite_db, "bob", "admin")
    assert (await ask(bob, "PATCH", org, name="  Apex ")).json() == {
        "id": org.removeprefix("/orgs/"), "name": "Apex", "slug": "acme",
    }  # fmt: skip
    assert_problem(await ask(bob, "PATCH", org, name="a\nb"), 422, "validation_error")
    assert (await ask(ana, "DELETE", org)).status_code == 204
    assert_problem(await ask(ana, "GET", org), 404, "not_found")
    assert await roles(sqlite_db) == {}


async def test_teams_hold_members_of_their_organization_alone(client: Client, db: AsyncDatabase) -> None:
    ana, ana_id = await person(client, db, "ana")
    _, eve_id = await person(client, db, "eve")
    org, other = await founded(ana), await founded(ana, "Other")
    _, bob_id = await joined(ana, org, db, "bob")
    bob = await client.log_in("bob@example.com")
    team = (await ask(ana, "POST", f"{org}/teams", name="Support")).json()["id"]
    assert_problem(await ask(ana, "POST", f"{org}/teams", name=" Support"), 409, "conflict")
    assert_problem(await ask(bob, "POST", f"{org}/teams", name="Mine"), 403, "forbidden")
    members = f"{org}/teams/{team}/members"
    for user_id in (ana_id, bob_id, bob_id):
        assert (await ask(ana, "PUT", f"{members}/{user_id}")).status_code == 204
    assert_problem(await ask(ana, "PUT", f"{members}/{eve_id}"), 404, "not_found")
    assert_problem(await ask(ana, "GET", f"{other}/teams/{team}/members"), 404, "not_found")
    assert_problem(await ask(ana, "DELETE", f"{other}/teams/{team}"), 404, "not_found")
    assert (await ask(bob, "GET", members)).json() == [ana_id, bob_id]
    assert (await ask(bob, "POST", f"{org}/leave")).status_code == 204
    assert (await ask(ana, "GET", members)).json() == [ana_id]
    assert (await ask(ana, "DELETE", f"{members}/{ana_id}")).status_code == 204
    assert_problem(await ask(ana, "DELETE", f"{members}/{ana_id}"), 404, "not_found")
    assert (await ask(ana, "DELETE", f"{org}/teams/{team}")).status_code == 204
    assert (await ask(ana, "GET", f"{org}/teams")).json() == []
    async with db.session(read_only=True) as session:
        assert list(await session.scalars(select(TeamMember))) == []
        recorded = select(AuditEntry.action).where(AuditEntry.action.like("team.%")).order_by(AuditEntry.sequence)
        assert list(await session.scalars(recorded)) == [
            "team.created", "team.member_added", "team.member_added", "team.member_removed", "team.deleted",
        ]  # fmt: skip


async def test_a_key_does_not_live_again_when_its_owner_comes_back(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    bob, _ = await joined(ana, org, sqlite_db, "bob")
    key = (await made(bob, organization_id=org.removeprefix("/orgs/")))["key"]
    assert (await call(here, key)).status_code == 200
    await ask(bob, "POST", f"{org}/leave")
    await ask(bob, "POST", "/orgs/invitations/accept", token=await invited(ana, org, "bob"))
    assert await roles(sqlite_db) == {"ana": "owner", "bob": "member"}
    assert_problem(await call(here, key), 401, "invalid_token")


async def test_a_role_in_the_tenant_permits_there_what_it_says(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    org_id = org.removeprefix("/orgs/")
    bob, _ = await joined(ana, org, sqlite_db, "bob", "treasurer")
    cid, _ = await joined(ana, org, sqlite_db, "cid", "admin")
    assert [(await one.get("/pay")).status_code for one in (ana, bob, cid)] == [200, 200, 403]
    for scopes, status in ((["invoice.pay"], 200), ([], 403)):
        for service in (True, False):
            key = (await made(ana, scopes=scopes, organization_id=org_id, service=service))["key"]
            assert (await call(here, key, "/pay")).status_code == status


async def test_members_come_in_pages(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    others = [await here.register(f"{name}@example.com") for name in ("bob", "cid")]
    async with sqlite_db.session() as session:
        for user_id in others:
            await Organizations(session).add_member(UUID(org.removeprefix("/orgs/")), user_id)
    ids = [ana_id, *map(str, others)]

    async def page(**query: str) -> list[str]:
        answer = await here.http.get(f"{org}/members", params=query, headers=ana.bearer)
        assert answer.status_code == 200, answer.text
        return [one["user_id"] for one in answer.json()]

    assert await page(limit="2") == ids[:2]
    assert await page(limit="2", after=ids[1]) == ids[2:]
    assert await page(after=ids[2]) == []
    assert await page() == ids
    for wrong, status in ({"after": str(uuid4())}, 404), ({"after": "x"}, 422), ({"limit": "1001"}, 422):
        answer = await here.http.get(f"{org}/members", params=wrong, headers=ana.bearer)
        assert answer.status_code == status


async def test_every_change_is_on_record_in_the_organizations_own_chain(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await person(here, sqlite_db, "ana")
    org = await founded(ana)
    org_id = org.removeprefix("/orgs/")
    bob, bob_id = await joined(ana, org, sqlite_db, "bob")
    await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="admin")
    await ask(ana, "PATCH", org, name="Apex")
    key = await made(ana, organization_id=org_id, service=True)
    await ask(ana, "POST", f"/auth/api-keys/{key['id']}/rotate")
    await ask(ana, "DELETE", f"/auth/api-keys/{key['id']}")
    await ask(bob, "POST", f"{org}/leave")
    await ask(ana, "DELETE", org)
    async with sqlite_db.session(read_only=True) as session:
        chain = select(AuditEntry.action).where(AuditEntry.tenant_id == org_id).order_by(AuditEntry.sequence)
        assert list(await session.scalars(chain)) == [
            "organization.created", "membership.added", "invitation.created", "membership.added",
            "invitation.accepted", "membership.role_changed", "organization.renamed", "api_key.created",
            "api_key.rotated", "api_key.revoked", "membership.removed", "organization.deleted",
        ]  # fmt: skip


def test_every_route_of_organizations_and_keys_declares_a_policy(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    assert routes_without_policy(with_organizations(sqlite_db, clock)) == []
