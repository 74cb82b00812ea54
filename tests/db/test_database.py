"""Units of work on both engines: what commits, what rolls back, what waits, what recovers."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError

from svc_infra.db import AsyncDatabase, _postgres
from svc_infra.errors import ConfigurationError, DeadlineExceededError, SvcInfraError, UnavailableError


@pytest.fixture
async def notes(db: AsyncDatabase) -> AsyncDatabase:
    """A database with a table to write to."""
    async with db.session() as session:
        await session.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, body text NOT NULL)"))
    return db


async def bodies(db: AsyncDatabase) -> list[str]:
    async with db.session(read_only=True) as session:
        return list((await session.scalars(text("SELECT body FROM notes ORDER BY id"))).all())


async def write(db: AsyncDatabase, body: str = "kept") -> None:
    async with db.session() as session:
        await session.execute(text("INSERT INTO notes VALUES ((SELECT count(*) FROM notes), :b)"), {"b": body})


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[AsyncDatabase]:
    database = AsyncDatabase(url, **options)  # type: ignore[arg-type]
    try:
        yield database
    finally:
        await database.dispose()


async def test_a_unit_of_work_that_ends_is_committed(notes: AsyncDatabase) -> None:
    await write(notes)
    assert await bodies(notes) == ["kept"]


async def test_a_unit_of_work_that_raises_leaves_nothing_and_keeps_its_own_error(notes: AsyncDatabase) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with notes.session() as session:
            await session.execute(text("INSERT INTO notes VALUES (1, 'gone')"))
            raise KeyError("mine")
    assert await bodies(notes) == []


async def test_a_unit_of_work_that_executes_nothing_takes_no_connection(notes: AsyncDatabase) -> None:
    async with notes.session() as session:
        assert not session.in_transaction()
        assert notes.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_session_is_of_no_use_after_its_block(notes: AsyncDatabase) -> None:
    async with notes.session() as session:
        await session.execute(text("SELECT 1"))
    with pytest.raises(InvalidRequestError):
        await session.execute(text("SELECT 1"))


async def test_a_read_only_unit_of_work_refuses_to_write(notes: AsyncDatabase) -> None:
    with pytest.raises(SvcInfraError, match="read-only"):
        async with notes.session(read_only=True) as session:
            await session.execute(text("INSERT INTO notes VALUES (1, 'no')"))
    await write(notes)
    assert await bodies(notes) == ["kept"]


async def test_reading_inside_of_a_writing_unit_of_work_sees_what_is_committed(notes: AsyncDatabase) -> None:
    async with notes.session() as outer:
        await outer.execute(text("INSERT INTO notes VALUES (1, 'pending')"))
        assert await bodies(notes) == []
    assert await bodies(notes) == ["pending"]


async def test_nested_units_of_work_on_postgres_are_independent(postgres_url: str) -> None:
    async with opened(postgres_url) as db:
        async with db.session() as session:
            await session.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, body text NOT NULL)"))
        with pytest.raises(KeyError):
            async with db.session() as outer:
                await outer.execute(text("INSERT INTO notes VALUES (10, 'outer')"))
                await write(db, "inner")
                raise KeyError
        assert await bodies(db) == ["inner"]


async def test_nested_writing_on_sqlite_fails_in_bounded_time_and_says_why(sqlite_url: str) -> None:
    async with opened(sqlite_url, pool_timeout=0.05) as db:
        with pytest.raises(UnavailableError, match="one inside another"):
            async with db.session() as outer:
                await outer.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, body text NOT NULL)"))
                await write(db)
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_waiting_for_a_connection_ends_at_the_pool_timeout(postgres_url: str) -> None:
    async with opened(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.05) as db, db.session() as first:
        await first.execute(text("SELECT 1"))
        with pytest.raises(UnavailableError, match="No database connection became free"):
            await db.ping()


async def test_a_hundred_writers_wait_for_each_other(notes: AsyncDatabase) -> None:
    async def increment() -> None:
        async with notes.session() as session:
            await session.execute(text("UPDATE notes SET body = cast(cast(body AS integer) + 1 AS text)"))

    await write(notes, "0")
    await asyncio.gather(*[increment() for _ in range(100)])
    assert await bodies(notes) == ["100"]


async def test_a_session_works_after_the_server_killed_every_connection(postgres_url: str) -> None:
    async with opened(postgres_url) as db:
        await asyncio.gather(*[db.ping() for _ in range(5)])
        admin = await asyncpg.connect(postgres_url)
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
        )
        await admin.close()
        for _ in range(5):
            await db.ping()


async def test_an_idle_connection_that_no_longer_answers_is_replaced(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres, "PING_AFTER_SECONDS", 0.0)
    async with opened(postgres_url) as db:
        async with db.session() as session:
            first = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            driver = (await (await session.connection()).get_raw_connection()).driver_connection
        assert driver is not None
        driver._transport.pause_reading()  # its end of the connection is not seen to close
        admin = await asyncpg.connect(postgres_url)
        await admin.execute("SELECT pg_terminate_backend($1, 5000)", first)
        await admin.close()
        assert not driver.is_closed()
        monkeypatch.setattr(_postgres, "PING_SECONDS", 0.05)
        async with db.session() as session:
            assert (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one() != first


async def test_a_connection_that_dies_inside_of_a_unit_of_work_is_unavailable_then_replaced(postgres_url: str) -> None:
    async with opened(postgres_url) as db:
        with pytest.raises(UnavailableError):
            async with db.session() as session:
                await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await db.ping()


async def test_an_error_of_the_block_survives_a_connection_that_cannot_roll_back(postgres_url: str) -> None:
    async with opened(postgres_url) as db:
        with pytest.raises(KeyError, match="mine"):
            async with db.session() as session:
                pid = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                admin = await asyncpg.connect(postgres_url)
                await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
                await admin.close()
                raise KeyError("mine")
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await db.ping()


async def test_a_statement_that_runs_too_long_is_stopped(postgres_url: str) -> None:
    async with opened(postgres_url, statement_timeout_seconds=0.05) as db:
        with pytest.raises(DeadlineExceededError):
            async with db.session() as session:
                await session.execute(text("SELECT pg_sleep(30)"))
        await db.ping()


async def test_sqlite_runs_with_the_pragmas_that_durability_and_integrity_need(sqlite_url: str) -> None:
    async with opened(sqlite_url, busy_timeout_seconds=7) as db:
        for read_only in (False, True):
            async with db.session(read_only=read_only) as session:
                values = {
                    name: (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
                }
            assert values == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 7000,
                "query_only": int(read_only),
            }


async def test_another_process_that_keeps_sqlite_locked_makes_it_unavailable(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url, busy_timeout_seconds=0.05) as db:
        await db.ping()
        other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="Another process"):
            async with db.session() as session:
                await session.execute(text("SELECT 1"))
        other.close()
        async with db.session() as session:
            await session.execute(text("SELECT 1"))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
async def test_a_database_in_memory_keeps_its_data_through_cancellation_and_is_its_own(url: str) -> None:
    async with opened(url) as db, opened(url) as other:
        async with db.session() as session:
            await session.execute(text("CREATE TABLE notes (id integer PRIMARY KEY, body text NOT NULL)"))
        await write(db)
        slow = asyncio.create_task(_count_for_long(db))
        while not db.engine.pool.checkedout():  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        slow.cancel()
        await asyncio.wait({slow})
        assert await bodies(db) == ["kept"]
        async with other.session() as session:
            assert (await session.scalars(text("SELECT name FROM sqlite_master"))).all() == []


async def _count_for_long(db: AsyncDatabase) -> None:
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000) SELECT count(*) FROM n"
    async with db.session() as session:
        await session.execute(text(numbers))


async def test_a_disposed_database_can_be_used_again(notes: AsyncDatabase) -> None:
    await write(notes)
    await notes.dispose()
    assert await bodies(notes) == ["kept"]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("postgresql://app:hunter2@127.0.0.1:1/shop", UnavailableError, "database at 127.0.0.1/shop cannot be reached"),
        ("postgresql://app:hunter2@nowhere.invalid/shop", UnavailableError, "nowhere.invalid/shop cannot be reached"),
        ("postgresql://app:hunter2@127.0.0.1:1/shop?frobnicate=1", ConfigurationError, "frobnicate"),
        ("sqlite:////proc/nowhere/app.db", ConfigurationError, "/proc/nowhere/app.db"),
        ("sqlite:///file:app.db?mode=ro&uri=true", ConfigurationError, "options mode, uri"),
        ("mysql://app:hunter2@db/shop", ConfigurationError, "'mysql'"),
        ("hunter2", ConfigurationError, "no database that svc-infra speaks"),
        ("postgresql://app:hunter2@db:port/shop", ConfigurationError, "SQL_URL"),
    ],
)
async def test_a_database_that_cannot_be_used_is_named_without_its_password(
    url: str, error: type[SvcInfraError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        async with opened(url) as db:
            await db.ping()
    assert "hunter2" not in str(raised.value)


async def test_a_wrong_user_or_database_name_is_a_configuration_error(postgres_url: str) -> None:
    for url, message in [
        (postgres_url.replace("postgres@", "nobody:hunter2@"), "refuses the user or the password"),
        (postgres_url.replace("/test_", "/other_"), "no database of this name"),
    ]:
        async with opened(url) as db:
            with pytest.raises(ConfigurationError, match=message) as raised:
                await db.ping()
            assert "hunter2" not in str(raised.value)


async def test_a_file_that_is_no_database_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 1000)
    async with opened(f"sqlite:///{tmp_path}/text.db") as db:
        with pytest.raises(ConfigurationError, match="is no SQLite database"):
            await db.ping()


async def test_a_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    async with opened(f"sqlite:///{tmp_path}/folder.db") as db:
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            await db.ping()


WITHOUT_RIGHTS = """
import asyncio, os, sys
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError

async def main():
    for name in ("stored.db", "new.db"):
        db = AsyncDatabase(f"sqlite:///{sys.argv[1]}/{name}")
        try:
            await db.ping()
        except ConfigurationError as error:
            print(error)
        await db.dispose()

async def load():  # what is imported when it is used lies where the other user may not read
    db = AsyncDatabase("sqlite://")
    await db.ping()
    await db.dispose()
    await asyncio.to_thread(int)

asyncio.run(load())
if os.getuid() == 0:
    os.setuid(65534)
asyncio.run(main())
"""


def test_a_folder_that_cannot_be_written_to_is_a_configuration_error() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sqlite3.connect(f"{folder}/stored.db").close()
        Path(folder, "stored.db").chmod(0o444)
        Path(folder).chmod(0o555)
        output = subprocess.check_output([sys.executable, "-c", WITHOUT_RIGHTS, folder], text=True)
        Path(folder).chmod(0o755)
    stored, new = output.splitlines()
    assert "read-only" in stored
    assert f"{folder}/stored.db" in stored
    assert "check SQL_URL and the folder's rights" in new
    assert f"{folder}/new.db" in new


def test_the_folder_of_a_new_sqlite_file_is_made(tmp_path: Path) -> None:
    AsyncDatabase(f"sqlite:///{tmp_path}/new/app.db")
    assert (tmp_path / "new").is_dir()


def test_the_password_is_in_no_printed_form() -> None:
    db = AsyncDatabase("postgres://app:hunter2@db.internal:6432/shop?sslmode=require&password=hunter2")
    assert repr(db) == "AsyncDatabase('postgresql+asyncpg://app:***@db.internal:6432/shop')"
    assert "hunter2" not in f"{db} {db.url.set(query={})}"


def test_libpq_spelling_of_the_tls_option_is_understood() -> None:
    db = AsyncDatabase("postgres://app@db.internal/shop?sslmode=require")
    assert db.engine.url.query == {"ssl": "require"}
