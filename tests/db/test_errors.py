"""No error of SQLAlchemy, asyncpg or sqlite3 leaves a unit of work as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import CheckConstraint, ForeignKey, String, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from svc_infra.db import AsyncDatabase
from svc_infra.db.columns import Json, UtcDateTime
from svc_infra.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SvcInfraError,
    UnavailableError,
    ValidationError,
)


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    __table_args__ = (CheckConstraint("size >= 0"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), unique=True)
    size: Mapped[int] = mapped_column(default=0)
    parent: Mapped[int | None] = mapped_column(ForeignKey("things.id"))
    token: Mapped[UUID | None]
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    extra: Mapped[Any] = mapped_column(Json, nullable=True)
    version: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  as the base declares it


@pytest.fixture
async def things(db: AsyncDatabase) -> AsyncDatabase:
    async with db.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
        session.add_all([Thing(id=1, name="one"), Thing(id=2, name="two", parent=1)])
    return db


def row(**values: object) -> Callable[[AsyncSession], Awaitable[object]]:
    return lambda session: session.execute(insert(Thing).values({"id": 9, "name": "nine", **values}))


def sql(statement: str) -> Callable[[AsyncSession], Awaitable[object]]:
    return lambda session: session.execute(text(statement))


async def changed_elsewhere(session: AsyncSession) -> None:
    thing = await session.get_one(Thing, 1)
    await session.execute(update(Thing).values(version=7).execution_options(synchronize_session=False))
    thing.size = 5
    await session.flush()


async def two_for_one(session: AsyncSession) -> None:
    (await session.scalars(select(Thing))).one()


FAILURES = [
    ("a taken unique value", row(name="one"), ConflictError),
    ("a taken primary key", row(id=1), ConflictError),
    ("a reference to nothing", row(parent=404), ConflictError),
    ("deleting what is referred to", sql("DELETE FROM things WHERE id = 1"), ConflictError),
    ("a missing value", row(name=None), ValidationError),
    ("a value that a check refuses", row(size=-1), ValidationError),
    ("a number that is too large", row(size=2**80), ValidationError),
    ("text with half a character", row(name="\ud800"), ValidationError),
    ("text with NUL", row(name="a\0b"), ValidationError),
    (
        "a question about text with NUL",
        lambda session: session.scalars(select(Thing.id).filter_by(name="\0")),
        ValidationError,
    ),
    ("JSON with NUL", row(extra={"a": ["\0"]}), ValidationError),
    ("JSON with half a character", row(extra={"a": ["\ud800"]}), ValidationError),
    ("JSON with a number that is none", row(extra={"a": float("nan")}), ValidationError),
    ("an object that is no value", row(name=object()), ValidationError),
    ("an identifier of the wrong form", row(token="x"), ValidationError),
    ("a time without a time zone", row(at=datetime(2024, 6, 7)), ValidationError),  # noqa: DTZ001
    ("a time that is none", row(at="yesterday"), ValidationError),
    ("JSON that is none", row(extra={"at": datetime.now(UTC)}), ValidationError),
    ("a row changed by someone else", changed_elsewhere, ConflictError),
    ("a row that must be there", lambda session: session.get_one(Thing, 404), NotFoundError),
    ("a syntax error", sql("SELEC 1"), SvcInfraError),
    ("a table that is not there", sql("SELECT * FROM nowhere"), SvcInfraError),
    ("a parameter that is not given", sql("SELECT :missing"), SvcInfraError),
    ("two rows for one", two_for_one, SvcInfraError),
]


@pytest.mark.parametrize(("cause", "kind"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
async def test_every_failure_becomes_an_error_of_the_library(
    cause: Callable[[AsyncSession], Awaitable[object]], kind: type[SvcInfraError], things: AsyncDatabase
) -> None:
    with pytest.raises(SvcInfraError) as raised:
        async with things.session() as session:
            await cause(session)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is not None
    for secret in ("nine", "INSERT", "things", "yesterday"):
        assert secret not in raised.value.detail
    async with things.session() as session:  # the connection is as good as before
        assert len((await session.scalars(select(Thing))).all()) == 2


async def test_a_deferred_constraint_that_fails_at_commit_is_translated(postgres_db: AsyncDatabase) -> None:
    with pytest.raises(ConflictError):
        async with postgres_db.session() as session:
            await session.execute(text("CREATE TABLE d (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
            await session.execute(text("INSERT INTO d VALUES (1), (1)"))


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT 1 / 0", ValidationError),
        ("SELECT cast('x' AS integer)", ValidationError),
        ("DO 'BEGIN RAISE SQLSTATE ''40001''; END'", ConflictError),
        ("DO 'BEGIN RAISE SQLSTATE ''40P01''; END'", ConflictError),
        ("DO 'BEGIN RAISE SQLSTATE ''55P03''; END'", ConflictError),
        ("DO 'BEGIN RAISE SQLSTATE ''57014''; END'", DeadlineExceededError),
        ("DO 'BEGIN RAISE SQLSTATE ''53100''; END'", UnavailableError),
        ("DO 'BEGIN RAISE SQLSTATE ''23001''; END'", ConflictError),
        ("DO 'BEGIN RAISE SQLSTATE ''P0001''; END'", SvcInfraError),
    ],
)
async def test_the_states_of_postgres_are_translated(
    statement: str, kind: type[SvcInfraError], postgres_db: AsyncDatabase
) -> None:
    with pytest.raises(SvcInfraError) as raised:
        async with postgres_db.session() as session:
            await session.execute(text(statement))
    assert type(raised.value) is kind


async def test_two_transactions_that_wait_for_each_other_end_in_a_conflict(postgres_db: AsyncDatabase) -> None:
    async with postgres_db.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
        session.add_all([Thing(id=1, name="one"), Thing(id=2, name="two")])
    both = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        async with postgres_db.session() as session:
            await session.execute(update(Thing).where(Thing.id == first).values(size=1))
            await both.wait()
            await session.execute(update(Thing).where(Thing.id == second).values(size=1))

    ends = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [ConflictError]


async def test_a_raw_error_of_the_driver_is_translated_too(db: AsyncDatabase) -> None:
    """What a user does on the driver's own connection never passes through SQLAlchemy."""
    with pytest.raises(SvcInfraError, match="refused"):
        async with db.session() as session:
            driver = (await (await session.connection()).get_raw_connection()).driver_connection
            assert driver is not None
            await driver.execute("SELECT * FROM nowhere")


@pytest.mark.parametrize("error", [ValueError("v"), TimeoutError("t"), OSError("o"), SystemExit(3)])
async def test_errors_that_are_not_the_databases_pass_untouched(error: BaseException, db: AsyncDatabase) -> None:
    with pytest.raises(type(error)) as raised:
        async with db.session() as session:
            await session.execute(text("SELECT 1"))
            raise error
    assert raised.value is error


async def test_json_about_nul_is_no_nul(things: AsyncDatabase) -> None:
    value = ["\\u0000", "\\\\u0000", "ü"]
    async with things.session() as session:
        await row(extra=value)(session)
    async with things.session() as session:
        assert await session.scalar(select(Thing.extra).where(Thing.id == 9)) == value
