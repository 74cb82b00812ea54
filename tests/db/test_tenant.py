"""One tenant's service never sees, changes or makes a row of another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, synonym

from svc_infra.db import AsyncDatabase
from svc_infra.db.columns import HasTenant
from svc_infra.db.sql import SqlRepository, TenantSqlService
from svc_infra.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    SvcInfraError,
    TenantRequiredError,
    ValidationError,
)


class Base(DeclarativeBase):
    pass


class Note(Base, HasTenant):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class Owned(Base):
    __tablename__ = "owned"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column("owner_id")
    alias = synonym("owner")


class Free(Base):
    __tablename__ = "free"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def notes(db: AsyncDatabase) -> AsyncDatabase:
    async with db.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
    return db


def service(tenant: str) -> TenantSqlService[Note]:
    return TenantSqlService(SqlRepository(Note), tenant_id=tenant)


async def test_a_row_is_made_in_the_tenant_and_foreign_ones_do_not_exist(notes: AsyncDatabase) -> None:
    async with notes.session() as session:
        note = await service("acme").create(session, {"id": 1, "body": "mine"})
        assert note.tenant_id == "acme"
        other = service("evil")
        assert await other.get(session, 1) is None
        assert await other.list(session) == []
        assert await other.count(session) == 0
        assert not await other.exists(session, 1)
        for hidden in (
            other.get_or_404(session, 1),
            other.update(session, 1, {"body": "stolen"}),
            other.delete(session, 1),
        ):
            with pytest.raises(NotFoundError):
                await hidden
        assert await service("acme").count(session) == 1
        assert (await service("acme").get_or_404(session, 1)).body == "mine"


@pytest.mark.parametrize("named", ["acme", "evil", None])
async def test_a_tenant_in_the_values_is_refused(named: str | None, notes: AsyncDatabase) -> None:
    async with notes.session() as session:
        await service("acme").create(session, {"id": 1, "body": "mine"})
        with pytest.raises(ValidationError, match="tenant_id cannot be set"):
            await service("acme").create(session, {"id": 2, "body": "x", "tenant_id": named})
        with pytest.raises(ValidationError, match="tenant_id cannot be set"):
            await service("acme").update(session, 1, {"tenant_id": named})
    async with notes.session() as session:
        assert [row.tenant_id for row in await session.scalars(select(Note))] == ["acme"]


async def test_a_second_name_of_the_tenant_column_is_refused_too(notes: AsyncDatabase) -> None:
    owned = TenantSqlService(SqlRepository(Owned), tenant_id="acme", tenant_field="owner")
    async with notes.session() as session:
        assert (await owned.create(session, {"id": 1})).owner == "acme"
        with pytest.raises(ValidationError, match="Owned has no alias"):
            await owned.update(session, 1, {"alias": "evil"})


def test_a_service_without_a_tenant_or_a_tenant_column_cannot_be_made() -> None:
    with pytest.raises(TenantRequiredError):
        service("")
    with pytest.raises(ConfigurationError, match="Free has no column 'tenant_id'"):
        TenantSqlService(SqlRepository(Free), tenant_id="acme")


IDS = st.integers(1, 6)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), IDS, st.dictionaries(st.sampled_from(["tenant_id", "body"]), st.just("evil"))),
    st.tuples(st.just("update"), IDS, st.dictionaries(st.sampled_from(["tenant_id", "body", "id"]), st.just("evil"))),
    st.tuples(st.sampled_from(["get", "get_or_404", "delete", "exists"]), IDS, st.just({})),
    st.tuples(st.sampled_from(["list", "count"]), st.just(0), st.just({})),
)


def predicted(owner: dict[int, str], tenant: str, operation: tuple[str, int, dict[str, Any]]) -> object:
    """What must come of it: what is seen or the error; `owner` is what is then stored."""
    name, identifier, values = operation
    own = {number for number, whose in owner.items() if whose == tenant}
    if "tenant_id" in values or "id" in values:
        return ValidationError
    match name:
        case "list":
            return own
        case "count":
            return len(own)
        case "exists":
            return identifier in own
        case "create" if identifier in owner:
            return ConflictError
        case "update" | "get_or_404" | "delete" if identifier not in own:
            return NotFoundError
        case "get" if identifier not in own:
            return None
        case "delete":
            del owner[identifier]
            return None
        case "create":
            owner[identifier] = tenant
    return identifier, tenant


async def do(session: AsyncSession, tenant: str, operation: tuple[str, int, dict[str, Any]]) -> object:
    name, identifier, values = operation
    mine = service(tenant)
    match name:
        case "create":
            row = await mine.create(session, {"id": identifier, "body": tenant, **values})
        case "update":
            row = await mine.update(session, identifier, values)
        case "list":
            return {note.id for note in await mine.list(session)}
        case "count":
            return await mine.count(session)
        case "exists":
            return await mine.exists(session, identifier)
        case "delete":
            return await mine.delete(session, identifier)
        case _:
            row = await getattr(mine, name)(session, identifier)
    return None if row is None else (row.id, row.tenant_id)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["acme", "evil"]), OPERATIONS), min_size=5, max_size=25))
async def test_no_operation_of_one_tenant_touches_the_other(
    steps: list[tuple[str, tuple[str, int, dict[str, Any]]]], notes: AsyncDatabase
) -> None:
    async with notes.session() as session:
        await session.execute(delete(Note))
    owner: dict[int, str] = {}
    for tenant, operation in steps:
        expected = predicted(owner, tenant, operation)
        try:
            async with notes.session() as session:
                seen = await do(session, tenant, operation)
        except SvcInfraError as error:
            seen = type(error)
        assert seen == expected
    async with notes.session() as session:
        assert {note.id: note.tenant_id for note in await session.scalars(select(Note))} == owner
