"""A unit of work that is cancelled, wherever it is: nothing half written, no connection kept."""

from __future__ import annotations

import asyncio
import random
import threading

import aiosqlite
import anyio
import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase, after_commit, unit_of_work
from svc_infra.errors import UnavailableError

PAIR = "CREATE TABLE pairs (batch integer NOT NULL, half integer NOT NULL, PRIMARY KEY (batch, half))"
INSERT = text("INSERT INTO pairs VALUES (:batch, :half)")
ROWS = text("SELECT 1 UNION ALL SELECT 2")
# PostgreSQL runs a deferred trigger inside of COMMIT: a commit that takes as long as a test wants.
SLOW_COMMIT = [
    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END'",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON pairs DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION wait()",
]


async def prepare(db: AsyncDatabase, *statements: str) -> None:
    async with db.session() as session:
        for statement in (PAIR, *statements):
            await session.execute(text(statement))


async def write_pair(db: AsyncDatabase, batch: int) -> None:
    async with db.session() as session:
        await session.execute(INSERT, {"batch": batch, "half": 1})
        await session.execute(ROWS)
        await session.execute(INSERT, {"batch": batch, "half": 2})


async def assert_clean(db: AsyncDatabase) -> int:
    """No half pair, no connection out, no transaction open; how many pairs there are."""
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with db.session(read_only=True) as session:
        sizes = (await session.scalars(text("SELECT count(*) FROM pairs GROUP BY batch"))).all()
        assert set(sizes) <= {2}
        if db.dialect == "postgresql":
            others = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
            assert (await session.execute(text(others))).scalar_one() == 0
    return len(sizes)


async def until_committing(db: AsyncDatabase) -> None:
    committing = text("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COMMIT%'")
    seen = 0
    while not seen:
        async with db.session(read_only=True) as session:  # a transaction sees one state of the activity only
            seen = (await session.execute(committing)).scalar_one()


async def ended(task: asyncio.Task[None]) -> None:
    """It was cancelled and takes no longer than that."""
    done, _ = await asyncio.wait({task}, timeout=5)
    assert task in done
    assert task.cancelled()


async def test_cancelling_at_random_awaits_leaves_nothing_half_done(db: AsyncDatabase) -> None:
    await prepare(db)
    chance = random.Random(20240607)
    waiting: list[asyncio.Task[None]] = []
    for batch in range(400):
        task = asyncio.create_task(write_pair(db, batch))
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        if chance.random() < 0.8:
            task.cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(0)
                task.cancel()
        waiting.append(task)
        if len(waiting) % 8 == 0:
            await asyncio.wait(waiting)  # they are kept, and with their tracebacks all that they were doing
    written = await assert_clean(db)
    assert 0 < written < 400  # some were in time, some were not


async def test_a_cancel_scope_that_cancels_again_and_again_leaves_nothing_half_done(db: AsyncDatabase) -> None:
    """Starlette cancels requests through such scopes."""
    await prepare(db)
    chance = random.Random(7)
    for batch in range(60):
        async with anyio.create_task_group() as group:
            group.start_soon(write_pair, db, batch)
            for _ in range(chance.randrange(60)):
                await asyncio.sleep(0)
            group.cancel_scope.cancel()
    await assert_clean(db)


async def test_a_commit_that_has_begun_ends_although_it_is_cancelled(postgres_db: AsyncDatabase) -> None:
    await prepare(postgres_db, *[statement.format(seconds=0.2) for statement in SLOW_COMMIT])
    called: list[str] = []

    async def work() -> None:
        async with postgres_db.session() as session:
            await session.execute(INSERT, {"batch": 1, "half": 1})
            await session.execute(INSERT, {"batch": 1, "half": 2})
            after_commit(session, lambda: called.append("committed"))

    task = asyncio.create_task(work())
    await until_committing(postgres_db)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == ["committed"]
    assert await assert_clean(postgres_db) == 1


async def test_a_commit_that_never_ends_is_given_up_when_it_is_cancelled(
    postgres_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_of_work, "FINISH_SECONDS", 0.05)
    await prepare(postgres_db, *[statement.format(seconds=3600) for statement in SLOW_COMMIT])
    task = asyncio.create_task(write_pair(postgres_db, 1))
    await until_committing(postgres_db)
    task.cancel()
    await ended(task)
    assert await assert_clean(postgres_db) == 0


async def test_a_cancelled_statement_stops_running_on_sqlite(sqlite_db: AsyncDatabase) -> None:
    running = threading.Event()
    numbers = "SELECT running() UNION ALL SELECT x + 1 FROM n WHERE x < 100000000"  # takes longer than the test waits
    counting = f"WITH RECURSIVE n(x) AS ({numbers}) SELECT count(*) FROM n"

    async def count() -> None:
        async with sqlite_db.session() as session:
            driver = (await (await session.connection()).get_raw_connection()).driver_connection
            assert driver is not None
            await driver.create_function("running", 0, lambda: running.set() or 1)
            await session.execute(text(counting))

    task = asyncio.create_task(count())
    while not running.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await ended(task)
    await prepare(sqlite_db)
    assert await assert_clean(sqlite_db) == 0


async def test_cancelled_between_two_rows_it_frees_the_writer_on_sqlite(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = AsyncDatabase(sqlite_url, busy_timeout_seconds=0.2)
    await prepare(db)
    reading = asyncio.Event()

    async def fetch_all(cursor: aiosqlite.Cursor) -> None:
        reading.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(aiosqlite.Cursor, "fetchall", fetch_all)
        task = asyncio.create_task(write_pair(db, 1))
        await reading.wait()
        task.cancel()
        await ended(task)
    await write_pair(db, 1)  # while the task's traceback holds the cursor
    assert await assert_clean(db) == 1
    await db.dispose()


async def test_a_stream_that_is_left_open_ends_with_its_session_on_sqlite(sqlite_url: str) -> None:
    db = AsyncDatabase(sqlite_url, pool_size=1, max_overflow=0, busy_timeout_seconds=0.2)
    other = AsyncDatabase(sqlite_url)
    hundred = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100) SELECT x, h FROM n"
    await prepare(db, f"INSERT INTO pairs {hundred}, (SELECT 1 AS h UNION ALL SELECT 2)")
    left: list[object] = []
    for read_only in (True, False):
        async with db.session(read_only=read_only) as session:
            left.append(rows := await session.stream(text("SELECT batch FROM pairs")))
            await rows.fetchone()
    await write_pair(other, 101)
    await write_pair(db, 102)  # its connection knows what the other has written since the stream began
    assert await assert_clean(db) == 102
    await other.dispose()
    await db.dispose()


async def test_waiting_for_a_connection_can_be_cancelled(db: AsyncDatabase) -> None:
    await prepare(db)
    async with db.session() as holder:
        await holder.execute(text("SELECT 1"))
        held = [asyncio.create_task(write_pair(db, batch)) for batch in range(3)]
        await asyncio.sleep(0)
        for task in held:
            task.cancel()
        await asyncio.wait(held)
    await assert_clean(db)


async def test_an_abandoned_wait_does_not_use_up_the_pool(postgres_url: str) -> None:
    db = AsyncDatabase(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.02)
    async with db.session() as holder:
        await holder.execute(text("SELECT 1"))
        for _ in range(5):
            with pytest.raises(UnavailableError):
                await db.ping()
    await db.ping()
    await db.dispose()
