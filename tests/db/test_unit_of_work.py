"""What is called back after a commit, and what never is."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.errors import ConfigurationError, SvcInfraError


async def test_callbacks_run_in_order_after_the_commit(db: AsyncDatabase) -> None:
    seen: list[object] = []

    async def count() -> None:
        async with db.session(read_only=True) as reader:
            seen.append((await reader.execute(text("SELECT count(*) FROM t"))).scalar_one())

    async with db.session() as session:
        await session.execute(text("CREATE TABLE t (x integer)"))
        await session.execute(text("INSERT INTO t VALUES (1)"))
        after_commit(session, lambda: seen.append("first"))
        after_commit(session, count)
        assert seen == []
    assert seen == ["first", 1]


async def test_a_unit_of_work_without_statements_calls_back_too(db: AsyncDatabase) -> None:
    seen: list[int] = []
    async with db.session() as session:
        after_commit(session, lambda: seen.append(1))
    assert seen == [1]


async def test_a_callback_that_is_registered_twice_runs_once(db: AsyncDatabase) -> None:
    seen: list[int] = []

    def callback() -> None:
        seen.append(1)

    async with db.session() as session:
        after_commit(session, callback)
        after_commit(session, callback)
    assert seen == [1]


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT * FROM nowhere"])
async def test_a_rollback_drops_the_callbacks(statement: str, db: AsyncDatabase) -> None:
    seen: list[int] = []
    with pytest.raises((KeyError, SvcInfraError)):
        async with db.session() as session:
            after_commit(session, lambda: seen.append(1))
            await session.execute(text(statement))
            raise KeyError
    assert seen == []


async def test_a_commit_that_fails_drops_the_callbacks(postgres_db: AsyncDatabase) -> None:
    seen: list[int] = []
    with pytest.raises(SvcInfraError):
        async with postgres_db.session() as session:
            await session.execute(text("CREATE TABLE d (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
            await session.execute(text("INSERT INTO d VALUES (1), (1)"))
            after_commit(session, lambda: seen.append(1))
    assert seen == []


async def test_a_savepoint_that_is_rolled_back_drops_only_what_depends_on_it(db: AsyncDatabase) -> None:
    seen: list[str] = []
    async with db.session() as session:
        after_commit(session, lambda: seen.append("before"))
        outer = await session.begin_nested()
        after_commit(session, lambda: seen.append("outer"))
        async with session.begin_nested():
            after_commit(session, lambda: seen.append("inner, released"))
        await outer.rollback()
        async with session.begin_nested():
            after_commit(session, lambda: seen.append("kept"))
        after_commit(session, lambda: seen.append("after"))
    assert seen == ["before", "kept", "after"]


async def test_rolling_back_by_hand_drops_what_came_before_and_keeps_what_comes_after(db: AsyncDatabase) -> None:
    seen: list[str] = []
    async with db.session() as session:
        await session.execute(text("SELECT 1"))
        after_commit(session, lambda: seen.append("before"))
        await session.rollback()
        await session.execute(text("SELECT 1"))
        after_commit(session, lambda: seen.append("after"))
    assert seen == ["after"]


async def test_a_callback_that_raises_is_logged_and_counted_and_stops_nothing(
    db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no cache")

    seen: list[int] = []
    before = REGISTRY.get_sample_value("db_after_commit_failed_total") or 0.0
    with caplog.at_level(logging.ERROR):
        async with db.session() as session:
            await session.execute(text("CREATE TABLE t (x integer)"))
            after_commit(session, fail)
            after_commit(session, lambda: seen.append(1))
    assert seen == [1]
    assert "db.after_commit_failed" in caplog.text
    assert "no cache" in caplog.text
    assert REGISTRY.get_sample_value("db_after_commit_failed_total") == before + 1
    async with db.session() as session:
        await session.execute(text("SELECT * FROM t"))


async def test_a_session_of_someone_else_is_refused(sqlite_db: AsyncDatabase) -> None:
    async with AsyncSession(sqlite_db.engine) as session:
        with pytest.raises(ConfigurationError, match=r"AsyncDatabase\.session"):
            after_commit(session, lambda: None)
