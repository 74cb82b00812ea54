"""The common operations, in a unit of work and in one line."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.schema import ForeignKey

from svc_infra.db import AsyncDatabase, DbOps
from svc_infra.db.columns import HasId, HasTimestamps
from svc_infra.db.sql import SqlRepository
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
from svc_infra.types import new_id


class Base(DeclarativeBase):
    pass


class Book(Base, HasId, HasTimestamps):
    __tablename__ = "books"
    title: Mapped[str] = mapped_column(String(50), unique=True)
    pages: Mapped[int] = mapped_column(default=0)
    chapters: Mapped[list[Chapter]] = relationship(cascade="all, delete-orphan", lazy="selectin")


class Chapter(Base):
    __tablename__ = "chapters"
    slug: Mapped[str] = mapped_column(primary_key=True)
    book_id: Mapped[Any] = mapped_column(ForeignKey("books.id"))


@pytest.fixture
async def books(db: AsyncDatabase) -> AsyncDatabase:
    async with db.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
    return db


REPO = SqlRepository(Book)


async def test_a_row_is_created_read_changed_and_really_deleted(books: AsyncDatabase) -> None:
    async with books.session() as session:
        book = await REPO.create(session, {"title": "Emma", "pages": 474})
    async with books.session() as session:
        assert (await REPO.get_or_404(session, book.id)).title == "Emma"
        assert (await REPO.update(session, book.id, {"pages": 475})).pages == 475
    async with books.session() as session:
        changed = await REPO.get_or_404(session, book.id)
        assert (changed.title, changed.pages) == ("Emma", 475)
        assert changed.updated_at > book.updated_at
        await REPO.delete(session, book.id)
    async with books.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM books"))).scalar_one() == 0


async def test_deleting_takes_what_the_model_owns_with_it(books: AsyncDatabase) -> None:
    async with books.session() as session:
        book = await REPO.create(session, {"title": "Emma"})
        await SqlRepository(Chapter, id_attr="slug").create(session, {"slug": "one", "book_id": book.id})
    await DbOps(books).delete(Book, book.id)
    async with books.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM chapters"))).scalar_one() == 0


async def test_a_page_is_ordered_and_bounded(books: AsyncDatabase) -> None:
    async with books.session() as session:
        for number in range(5):
            await REPO.create(session, {"title": f"b{number}", "pages": number % 2})
    async with books.session(read_only=True) as session:
        longest = await REPO.list(session, order_by=[Book.pages.desc()], limit=3)
        assert [book.title for book in longest] == ["b1", "b3", "b0"]
        rest = await REPO.list(session, order_by=[Book.pages.desc()], limit=3, offset=3)
        assert [book.title for book in rest] == ["b2", "b4"]
        assert [book.title for book in await REPO.list(session, where=[Book.pages == 1])] == ["b1", "b3"]
        assert await REPO.list(session, limit=0) == []
        for limit, offset in [(1001, 0), (-1, 0), (1, -1)]:
            with pytest.raises(ValidationError, match="limit must be"):
                await REPO.list(session, limit=limit, offset=offset)


async def test_conditions_hide_rows_from_every_operation(books: AsyncDatabase) -> None:
    thin = [Book.pages < 100]
    async with books.session() as session:
        book = await REPO.create(session, {"title": "Emma", "pages": 474})
        assert await REPO.get(session, book.id, where=thin) is None
        assert await REPO.count(session, where=thin) == 0
        assert not await REPO.exists(session, book.id, where=thin)
        for hidden in (
            REPO.get_or_404(session, book.id, where=thin),
            REPO.update(session, book.id, {"pages": 1}, where=thin),
            REPO.delete(session, book.id, where=thin),
        ):
            with pytest.raises(NotFoundError, match=f"Book {book.id} was not found"):
                await hidden
        assert await REPO.count(session) == 1
        assert await REPO.exists(session, book.id)


async def test_only_columns_of_the_model_can_be_written(books: AsyncDatabase) -> None:
    async with books.session() as session:
        book = await REPO.create(session, {"title": "Emma"})
        for values in ({"nope": 1}, {"chapters": []}, {"metadata": {}}, {"__class__": object}):
            with pytest.raises(ValidationError, match="Book has no"):
                await REPO.create(session, {"title": "x", **values})
            with pytest.raises(ValidationError, match="Book has no"):
                await REPO.update(session, book.id, values)
        with pytest.raises(ValidationError, match="id cannot be changed"):
            await REPO.update(session, book.id, {"id": new_id()})


async def test_each_of_the_short_operations_is_its_own_unit_of_work(books: AsyncDatabase) -> None:
    ops = DbOps(books)
    book = await ops.create(Book, {"title": "Emma", "pages": 474})
    with pytest.raises(ConflictError):
        await ops.create(Book, {"title": "Emma"})
    assert (await ops.get_or_404(Book, book.id)).title == "Emma"
    assert (await ops.update(Book, book.id, {"pages": 1})).pages == 1
    assert [found.pages for found in await ops.list(Book, where=[Book.pages == 1])] == [1]
    assert (await ops.count(Book), await ops.exists(Book, book.id)) == (1, True)
    await ops.delete(Book, book.id)
    assert (await ops.count(Book), await ops.exists(Book, book.id), await ops.get(Book, book.id)) == (0, False, None)
    for missing in (ops.get_or_404(Book, book.id), ops.update(Book, book.id, {}), ops.delete(Book, book.id)):
        with pytest.raises(NotFoundError):
            await missing


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is not a mapped class"):
        SqlRepository(dict)
    with pytest.raises(ConfigurationError, match="Book has no column 'slug'"):
        SqlRepository(Book, id_attr="slug")
