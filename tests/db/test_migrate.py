"""Migrating: once, in order, all or nothing, and to exactly the tables that the models describe."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from svc_infra.db import AsyncDatabase
from svc_infra.db.columns import Base
from svc_infra.db.sql import migrate
from svc_infra.db.sql.migrate import LIBRARY, Migrations, current, pending, upgrade
from svc_infra.errors import ConfigurationError, SvcInfraError, UnavailableError

MODELS = [
    "svc_infra.db.models",
    "svc_infra.admin.impersonation.models",
    "svc_infra.security.models",
    "svc_infra.security.audit.models",
    "svc_infra.security.keys.models",
    "svc_infra.security.mfa.models",
    "svc_infra.security.oauth.models",
    "svc_infra.jobs.flows.models",
    "svc_infra.security.organizations.models",
    "svc_infra.idempotency.models",
    "svc_infra.jobs.sql.models",
    "svc_infra.jobs.schedules.models",
    "svc_infra.webhooks.models",
]
CHAIN = [
    "0001_outbox",
    "0002_security",
    "0003_jobs",
    "0004_webhooks",
    "0005_idempotency",
    "0006_jobs",
    "0008_schedules",
    "0009_flows",
    "0010_audit",
    "0011_accounts",
    "0015_api_keys",
    "0016_organizations",
    "0017_oauth",
    "0018_mfa",
    "0019_admin",
    "0020_key_rates",
    "0021_searches",
]


@pytest.fixture(params=["sqlite", "postgres"])
async def empty(request: pytest.FixtureRequest) -> AsyncIterator[AsyncDatabase]:
    """A database without tables."""
    database = AsyncDatabase(request.getfixturevalue(f"{request.param}_url"))
    yield database
    await database.dispose()


def revision(folder: Path, name: str, after: str | None, up: str, down: str = "pass") -> Migrations:
    """Write a revision of an application; its chain."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nrevision = {name!r}\ndown_revision = {after!r}\n"
        f"def upgrade():\n    {up}\ndef downgrade():\n    {down}\n"
    )
    return Migrations(folder, "app_schema_version")


async def tables(db: AsyncDatabase) -> set[str]:
    async with db.session(read_only=True) as session:
        names = await (await session.connection()).run_sync(lambda connection: inspect(connection).get_table_names())
    return set(names)


async def test_upgrade_applies_the_librarys_chain_and_says_what_it_did(
    empty: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    assert await pending(empty) == CHAIN
    assert await current(empty) == []
    with caplog.at_level(logging.INFO, logger="svc_infra"):
        assert await upgrade(empty) == CHAIN
    assert [record.revision for record in caplog.records if record.message == "migration.applying"] == CHAIN  # type: ignore[attr-defined]
    assert await pending(empty) == []
    assert await current(empty) == CHAIN[-1:]
    assert await upgrade(empty) == []


async def test_the_librarys_revisions_are_read_once_for_all_apps_of_a_process(
    sqlite_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade(sqlite_db)

    def read(*arguments: object, **options: object) -> None:
        raise AssertionError("again")

    monkeypatch.setattr(migrate, "ScriptDirectory", read)
    assert (await upgrade(sqlite_db), await pending(sqlite_db)) == ([], [])


async def test_the_migrated_schema_is_the_one_that_the_models_describe(db: AsyncDatabase) -> None:
    for module in MODELS:
        import_module(module)

    def difference(connection: Connection) -> list[object]:
        ours = {"include_object": lambda thing, name, kind, *_: kind != "table" or name != "svc_schema_version"}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **ours})
        return list(compare_metadata(context, Base.metadata))

    assert {"svc_outbox", "svc_inbox"} < set(Base.metadata.tables)
    async with db.session() as session:
        assert await (await session.connection()).run_sync(difference) == []


async def test_every_revision_of_the_library_can_be_taken_back(db: AsyncDatabase) -> None:
    def downgrade(connection: Connection) -> None:
        script = ScriptDirectory(LIBRARY.directory, version_locations=[LIBRARY.directory])
        with EnvironmentContext(Config(), script, fn=lambda heads, _: script._downgrade_revs("base", heads)) as context:
            context.configure(connection, version_table=LIBRARY.version_table, render_as_batch=True)
            context.run_migrations()

    async with db.session() as session:
        await (await session.connection()).run_sync(downgrade)
    assert await tables(db) == {LIBRARY.version_table}
    assert await upgrade(db) == CHAIN


async def test_an_applications_own_chain_follows_the_librarys(empty: AsyncDatabase, tmp_path: Path) -> None:
    own = revision(tmp_path / "own", "0001_orders", None, "op.create_table('orders', sa.Column('id', sa.Integer))")
    assert await upgrade(empty, [LIBRARY, own]) == [*CHAIN, "0001_orders"]
    revision(tmp_path / "own", "0002_more", "0001_orders", "op.create_table('more', sa.Column('id', sa.Integer))")
    assert await pending(empty, [LIBRARY, own]) == ["0002_more"]
    assert await current(empty, [LIBRARY, own]) == [CHAIN[-1], "0001_orders"]
    assert await upgrade(empty, [LIBRARY, own]) == ["0002_more"]
    assert {"orders", "more", "svc_schema_version", "app_schema_version"} < await tables(empty)


async def test_a_revision_that_fails_leaves_nothing_of_the_whole_upgrade(empty: AsyncDatabase, tmp_path: Path) -> None:
    create = "op.create_table('orders', sa.Column('id', sa.Integer)); op.execute('INSERT INTO nowhere VALUES (1)')"
    own = revision(tmp_path / "own", "0001_orders", None, create)
    with pytest.raises(SvcInfraError, match=r"Migration 0001_orders failed and nothing was applied: .*nowhere"):
        await upgrade(empty, [LIBRARY, own])
    assert await tables(empty) == set()
    assert await upgrade(empty) == CHAIN


async def test_a_cancelled_upgrade_leaves_nothing(empty: AsyncDatabase, tmp_path: Path) -> None:
    own = revision(tmp_path / "own", "0001_orders", None, "op.create_table('orders', sa.Column('id', sa.Integer))")
    for steps in range(0, 200, 9):
        task = asyncio.create_task(upgrade(empty, [LIBRARY, own]))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert await upgrade(empty, [LIBRARY, own]) == [*CHAIN, "0001_orders"]


async def test_rebuilding_a_table_on_sqlite_keeps_the_rows_that_refer_to_it(
    sqlite_db: AsyncDatabase, tmp_path: Path
) -> None:
    first = (
        "op.create_table('parents', sa.Column('id', sa.Integer, primary_key=True), sa.Column('n', sa.Integer)); "
        "op.create_table('children', sa.Column('id', sa.Integer, primary_key=True), "
        "sa.Column('parent', sa.Integer, sa.ForeignKey('parents.id', ondelete='CASCADE'))); "
        "op.execute('INSERT INTO parents VALUES (1, 1)'); op.execute('INSERT INTO children VALUES (1, 1)')"
    )
    revision(tmp_path / "own", "0001_family", None, first)
    rebuild = "\n    ".join(
        ["with op.batch_alter_table('parents', recreate='always') as t:", "    t.alter_column('n', nullable=False)"]
    )
    own = revision(tmp_path / "own", "0002_strict", "0001_family", rebuild)
    assert await upgrade(sqlite_db, [LIBRARY, own]) == ["0001_family", "0002_strict"]
    async with sqlite_db.session() as session:
        assert (await session.execute(text("SELECT count(*) FROM children"))).scalar_one() == 1
        assert (await session.execute(text("PRAGMA foreign_keys"))).scalar_one() == 1


async def test_a_migration_that_would_break_references_is_refused_on_sqlite(
    sqlite_db: AsyncDatabase, tmp_path: Path
) -> None:
    orphan = (
        "op.create_table('parents', sa.Column('id', sa.Integer, primary_key=True)); "
        "op.create_table('children', sa.Column('parent', sa.Integer, sa.ForeignKey('parents.id'))); "
        "op.execute('INSERT INTO children VALUES (404)')"
    )
    own = revision(tmp_path / "own", "0001_orphan", None, orphan)
    with pytest.raises(SvcInfraError, match="rows without what they refer to in: children"):
        await upgrade(sqlite_db, [LIBRARY, own])
    assert "children" not in await tables(sqlite_db)


async def test_many_processes_may_upgrade_at_once(empty: AsyncDatabase) -> None:
    script = (
        "import asyncio, sys\nfrom svc_infra.db import AsyncDatabase\nfrom svc_infra.db.sql.migrate import upgrade\n"
        "async def main():\n    db = AsyncDatabase(sys.argv[1])\n    sys.stdin.readline()\n"
        "    print(len(await upgrade(db)))\n    await db.dispose()\nasyncio.run(main())"
    )
    url = empty.url.render_as_string(hide_password=False)
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", script, url, stdin=PIPE, stdout=PIPE)
        for _ in range(3)
    ]
    ends = await asyncio.gather(*[process.communicate(b"go\n") for process in processes])
    assert sorted(int(output) for output, _ in ends) == [0, 0, len(CHAIN)]


async def test_many_tasks_of_one_process_may_upgrade_different_databases(tmp_path: Path) -> None:
    databases = [AsyncDatabase(f"sqlite:///{tmp_path}/{number}.db") for number in range(4)]
    assert await asyncio.gather(*[upgrade(db) for db in databases]) == [CHAIN] * 4
    for db in databases:
        await db.dispose()


async def test_waiting_for_another_migrator_is_bounded(
    postgres_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_WAIT_SECONDS", 0.05)
    async with postgres_db.session() as other:
        await other.execute(text(f"SELECT pg_advisory_xact_lock({migrate._ADVISORY_LOCK})"))
        with pytest.raises(UnavailableError, match="Another process"):
            await upgrade(postgres_db)
    assert await upgrade(postgres_db) == []


async def test_a_migration_may_take_longer_than_a_statement_of_the_service(postgres_url: str, tmp_path: Path) -> None:
    own = revision(tmp_path / "own", "0001_slow", None, "op.execute('SELECT pg_sleep(0.2)')")
    db = AsyncDatabase(postgres_url, statement_timeout_seconds=0.1)
    assert await upgrade(db, [own]) == ["0001_slow"]
    await db.dispose()


async def test_old_code_runs_on_a_newer_schema_but_does_not_migrate_it(empty: AsyncDatabase, tmp_path: Path) -> None:
    newer = revision(tmp_path / "newer", "0001_orders", None, "pass")
    revision(tmp_path / "newer", "0002_later", "0001_orders", "pass")
    await upgrade(empty, [newer])
    older = revision(tmp_path / "older", "0001_orders", None, "pass")
    assert await pending(empty, [older]) == []
    with pytest.raises(ConfigurationError, match="0002_later, which this release does not know"):
        await upgrade(empty, [older])


async def test_a_folder_that_is_missing_is_named(empty: AsyncDatabase, tmp_path: Path) -> None:
    for call in (upgrade, pending):
        with pytest.raises(ConfigurationError, match="nowhere"):
            await call(empty, [Migrations(tmp_path / "nowhere", "v")])


async def test_a_forked_chain_is_refused(empty: AsyncDatabase, tmp_path: Path) -> None:
    revision(tmp_path / "own", "0001_a", None, "pass")
    own = revision(tmp_path / "own", "0001_b", None, "pass")
    with pytest.raises(ConfigurationError, match=r"0001_a, 0001_b|0001_b, 0001_a"):
        await upgrade(empty, [own])


@pytest.mark.filterwarnings("ignore:Revision 0001_gone")
async def test_a_chain_with_a_gap_is_refused(empty: AsyncDatabase, tmp_path: Path) -> None:
    own = revision(tmp_path / "own", "0002_b", "0001_gone", "pass")
    with pytest.raises(ConfigurationError, match="cannot be read: '0001_gone'"):
        await upgrade(empty, [own])
