"""An organization has an owner at all times, also when owners delete their accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select, text

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConflictError
from svc_infra.security import Accounts, Organizations
from svc_infra.security.models import Membership, Organization, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running
from tests.security.organizations.test_http import ask, founded, joined, person, with_organizations


@pytest.fixture
async def client(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    async with running(with_organizations(db, clock), clock) as client:
        yield client


async def delete_account(who: Client) -> httpx2.Response:
    return await ask(who, "DELETE", "/auth/me", password=PASSWORD)


async def owners(db: AsyncDatabase) -> dict[str, list[str]]:
    """The owners of every organization, by its name."""
    found: dict[str, list[str]] = {}
    async with db.session(read_only=True) as session:
        for name in await session.scalars(select(Organization.name)):
            found[name] = []
        rows = await session.execute(
            select(Organization.name, User.email)
            .join(Membership, Membership.organization_id == Organization.id)
            .join(User, User.id == Membership.user_id)
            .where(Membership.role == "owner")
            .order_by(User.email)
        )
        for name, email in rows:
            found[name].append(email.partition("@")[0])
    return found


async def test_the_only_owner_cannot_delete_the_account_and_is_told_of_what(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await person(client, db, "ana")
    acme, shared, other = await founded(ana, "Acme"), await founded(ana, "Shared"), await founded(ana, "Other")
    _, bob_id = await joined(ana, shared, db, "bob")
    assert (await ask(ana, "PATCH", f"{shared}/members/{bob_id}", role="owner")).status_code == 204
    problem = assert_problem(await delete_account(ana), 409, "conflict")
    assert problem["organizations"] == [
        {"id": acme.removeprefix("/orgs/"), "name": "Acme"}, {"id": other.removeprefix("/orgs/"), "name": "Other"},
    ]  # fmt: skip
    assert (await ask(ana, "GET", "/auth/me")).status_code == 200, "nothing has happened: the login lives"
    assert await owners(db) == {"Acme": ["ana"], "Shared": ["ana", "bob"], "Other": ["ana"]}

    _, eve_id = await joined(ana, acme, db, "eve")
    assert (await ask(ana, "PATCH", f"{acme}/members/{eve_id}", role="owner")).status_code == 204
    assert [one["name"] for one in (await delete_account(ana)).json()["organizations"]] == ["Other"]
    assert (await ask(ana, "DELETE", other)).status_code == 204
    assert (await delete_account(ana)).status_code == 204
    assert await owners(db) == {"Acme": ["eve"], "Shared": ["bob"]}


async def test_who_owns_nothing_alone_may_go(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await person(client, db, "ana")
    org = await founded(ana)
    for name, role in (("bob", "admin"), ("eve", "member")):
        who, _ = await joined(ana, org, db, name, role)
        assert (await delete_account(who)).status_code == 204
    assert await owners(db) == {"Acme": ["ana"]}


async def test_of_owners_who_go_at_once_one_stays(client: Client, db: AsyncDatabase) -> None:
    accounts = wiring_of(client.app).get(Accounts)
    for number in range(4):
        ids = [await client.register(f"owner{number}-{one}@example.com") for one in range(3)]
        async with db.session() as session:
            organizations = Organizations(session)
            made = [await organizations.create(name=f"Org {number}", owner_id=ids[0]) for _ in range(2)]
            for organization in made:
                for user_id in ids[1:]:
                    await organizations.add_member(organization.id, user_id, "owner")

        async def go(user_id: UUID) -> str:
            try:
                async with db.session() as session:
                    await accounts.delete(session, user_id)
            except ConflictError as refusal:
                return str(len(refusal.members["organizations"]))
            return "gone"

        assert sorted(await asyncio.gather(*map(go, ids))) == ["2", "gone", "gone"]
    async with db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(Membership)) == 8


async def test_an_owner_who_is_disabled_is_no_owner_who_could_stay(client: Client, db: AsyncDatabase) -> None:
    ana, ana_id = await person(client, db, "ana")
    org = await founded(ana)
    _, bob_id = await joined(ana, org, db, "bob")
    assert (await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="owner")).status_code == 204
    accounts = wiring_of(client.app).get(Accounts)
    async with db.session() as session:
        await accounts.disable(session, UUID(bob_id), reason="left the company")
    for refused in (
        await ask(ana, "POST", f"{org}/leave"),
        await ask(ana, "PATCH", f"{org}/members/{ana_id}", role="member"),
        await ask(ana, "DELETE", f"{org}/members/{ana_id}"),
        await delete_account(ana),
        await ask(ana, "POST", "/auth/disable", password=PASSWORD),
    ):
        assert_problem(refused, 409, "conflict")
    assert await owners(db) == {"Acme": ["ana", "bob"]}
    async with db.session() as session:
        await accounts.enable(session, UUID(bob_id))
    assert (await ask(ana, "POST", f"{org}/leave")).status_code == 204


async def test_the_only_owner_does_not_give_the_account_up_and_an_admin_is_not_held_up_by_that(
    client: Client, db: AsyncDatabase
) -> None:
    ana, ana_id = await person(client, db, "ana")
    await founded(ana)
    problem = assert_problem(await ask(ana, "POST", "/auth/disable", password=PASSWORD), 409, "conflict")
    assert [one["name"] for one in problem["organizations"]] == ["Acme"]
    assert (await ask(ana, "GET", "/auth/me")).status_code == 200
    async with db.session() as session:
        await wiring_of(client.app).get(Accounts).disable(session, UUID(ana_id), reason="stolen")
    assert_problem(await ask(ana, "GET", "/auth/me"), 401, "invalid_token")


async def test_of_an_owner_who_leaves_and_one_who_gives_up_at_once_one_stays(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await person(client, db, "ana")
    org = await founded(ana)
    bob, bob_id = await joined(ana, org, db, "bob")
    await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="owner")
    leave, give_up = ask(ana, "POST", f"{org}/leave"), ask(bob, "POST", "/auth/disable", password=PASSWORD)
    answers = await asyncio.gather(leave, give_up)
    assert sorted(answer.status_code for answer in answers) == [204, 409]


@pytest.mark.parametrize("first", ["leaves", "goes"])
async def test_of_an_owner_who_leaves_and_one_who_goes_at_once_one_stays(
    first: str, client: Client, db: AsyncDatabase
) -> None:
    ana, _ = await person(client, db, "ana")
    org = await founded(ana)
    bob, bob_id = await joined(ana, org, db, "bob")
    await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="owner")
    steps = [ask(ana, "POST", f"{org}/leave"), delete_account(bob)]
    answers = await asyncio.gather(*(steps if first == "leaves" else reversed(steps)))
    assert sorted(answer.status_code for answer in answers) == [204, 409]
    assert len((await owners(db))["Acme"]) == 1


async def test_nobody_is_made_an_owner_while_they_go(client: Client, db: AsyncDatabase) -> None:
    """Ana hands over to Bob and leaves, while Bob deletes his account."""
    ana, _ = await person(client, db, "ana")
    for number in range(3):
        org = await founded(ana, f"Org {number}")
        bob, bob_id = await joined(ana, org, db, f"bob{number}")

        async def hand_over(org: str = org, bob_id: str = bob_id) -> None:
            await ask(ana, "PATCH", f"{org}/members/{bob_id}", role="owner")
            await ask(ana, "POST", f"{org}/leave")

        await asyncio.gather(hand_over(), delete_account(bob))
    assert all((await owners(db)).values()), await owners(db)


async def test_a_membership_that_is_made_at_that_moment_is_not_overlooked(
    postgres_db: AsyncDatabase, clock: FakeClock
) -> None:
    async with running(with_organizations(postgres_db, clock), clock) as client:
        ana_id, bob_id = await client.register("ana@example.com"), await client.register("bob@example.com")
        accounts = wiring_of(client.app).get(Accounts)

        async def go() -> None:
            async with postgres_db.session() as session:
                await accounts.delete(session, bob_id)

        async with postgres_db.session() as session:
            organization = await Organizations(session).create(name="Acme", owner_id=ana_id)
            await Organizations(session).add_member(organization.id, bob_id, "owner")
            going = asyncio.create_task(go())
            await until_somebody_waits(postgres_db)
        with pytest.raises(ConflictError, match="at this moment"):
            await going


async def until_somebody_waits(db: AsyncDatabase) -> None:
    waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with asyncio.timeout(20):
        while True:
            async with db.session(read_only=True) as session:
                if await session.scalar(waits):
                    return
            await asyncio.sleep(0.01)
