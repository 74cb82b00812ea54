from __future__ import annotations

from uuid import uuid4

import pytest

from svc_infra.errors import ConflictError, NotFoundError, ValidationError
from svc_infra.security import OrganizationRole, Organizations
from tests.security.conftest import World


async def test_who_makes_an_organization_owns_it(world: World) -> None:
    ana, eve = await world.register(), await world.register("eve@example.com")
    async with world.db.session() as session:
        acme = await Organizations(session).create(name=" Acme & Söhne GmbH ", owner_id=ana)
    async with world.db.session(read_only=True) as session:
        organizations = Organizations(session)
        assert (acme.name, acme.slug) == ("Acme & Söhne GmbH", "acme-sohne-gmbh")
        assert await organizations.role(acme.id, ana) == "owner"
        assert await organizations.role(acme.id, eve) is None
        assert await organizations.role(uuid4(), ana) is None
        assert await organizations.exists(acme.id)
        assert not await organizations.exists(uuid4())


async def test_a_user_sees_the_organizations_of_that_user_only(world: World) -> None:
    ana, eve = await world.register(), await world.register("eve@example.com")
    async with world.db.session() as session:
        organizations = Organizations(session)
        made = [await organizations.create(name=f"Org {number}", owner_id=ana) for number in range(3)]
        await organizations.add_member(made[1].id, eve)
    async with world.db.session(read_only=True) as session:
        organizations = Organizations(session)
        assert [(item.organization.slug, item.role) for item in await organizations.of_user(eve)] == [
            ("org-1", "member")
        ]
        assert [item.organization.slug for item in await organizations.of_user(ana)] == ["org-0", "org-1", "org-2"]
        assert len(await organizations.of_user(ana, limit=2)) == 2


async def test_a_taken_slug_and_a_second_membership_are_conflicts_that_the_unit_of_work_survives(world: World) -> None:
    ana = await world.register()
    async with world.db.session() as session:
        organizations = Organizations(session)
        acme = await organizations.create(name="Acme", owner_id=ana)
        with pytest.raises(ConflictError):
            await organizations.create(name="Another", owner_id=ana, slug="acme")
        with pytest.raises(ConflictError):
            await organizations.add_member(acme.id, ana, OrganizationRole.ADMIN)
    async with world.db.session(read_only=True) as session:
        assert [item.role for item in await Organizations(session).of_user(ana)] == ["owner"]


async def test_organizations_of_one_name_have_slugs_of_their_own(world: World) -> None:
    ana = await world.register()
    async with world.db.session() as session:
        organizations = Organizations(session)
        made = [await organizations.create(name=name, owner_id=ana) for name in ["Acme", "ACME"] + ["株式会社"] * 2]
        long = [await organizations.create(name="x" * 200, owner_id=ana) for _ in range(2)]
    assert made[0].slug == "acme"
    assert made[1].slug.startswith("acme-")
    assert made[2].slug == "organization"
    assert [len(organization.slug) for organization in long] == [54, 63]
    assert len({organization.slug for organization in made + long}) == 6


async def test_only_existing_users_become_members_of_existing_organizations(world: World) -> None:
    ana = await world.register()
    async with world.db.session() as session:
        organizations = Organizations(session)
        acme = await organizations.create(name="Acme", owner_id=ana)
        with pytest.raises(NotFoundError):
            await organizations.add_member(acme.id, uuid4())
        with pytest.raises(NotFoundError):
            await organizations.add_member(uuid4(), ana)


WRONG_NAMES = ["", "   ", "x" * 201, "a\x00b", "a\nb"]
WRONG_SLUGS = ["", "-", "A", "a--b", "a-", "é", "a/b", "x" * 64, "a\n"]


async def test_an_unacceptable_name_or_slug_makes_no_organization(world: World) -> None:
    ana = await world.register()
    async with world.db.session() as session:
        for name, slug in [*((name, None) for name in WRONG_NAMES), *(("Acme", slug) for slug in WRONG_SLUGS)]:
            with pytest.raises(ValidationError):
                await Organizations(session).create(name=name, owner_id=ana, slug=slug)
        assert await Organizations(session).of_user(ana) == []
