"""An app with a database: what it shares, and how it starts and stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, Inbox, Outbox, OutboxMessage, OutboxRelay
from svc_infra.db.add import add_db
from svc_infra.db.sql.migrate import LIBRARY, chains, current, pending, upgrade
from svc_infra.errors import ConfigurationError, MigrationRequiredError, UnavailableError
from svc_infra.wiring import current_wiring, wiring_of


def made(env: str = "test", **sql: Any) -> FastAPI:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": env}, sql=sql))
    return app


async def test_the_rooms_of_an_app_share_one_database(sqlite_url: str) -> None:
    app = made(url=sqlite_url)
    add_db(app)
    wiring = wiring_of(app)
    first = wiring.get(AsyncDatabase)
    add_db(app, url="sqlite:///another.db")
    assert wiring.get(AsyncDatabase) is first
    assert all(wiring.has(kind) for kind in (Outbox, OutboxRelay, Inbox))
    assert list(wiring.parts) == ["db", "outbox"]


@pytest.mark.parametrize("env", ["local", "test"])
async def test_local_and_test_migrate_at_start(env: str, sqlite_url: str) -> None:
    app = made(env, url=sqlite_url)
    add_db(app)
    async with app.router.lifespan_context(app):
        assert await pending(wiring_of(app).get(AsyncDatabase)) == []


@pytest.mark.parametrize(("env", "forbidden"), [("dev", None), ("prod", None), ("test", False)])
async def test_elsewhere_the_start_is_refused_with_the_command_to_run(
    env: str, forbidden: bool | None, sqlite_url: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    app = made(env, url=sqlite_url, migrate_on_start=forbidden)
    add_db(app, migrations=own)
    with pytest.raises(MigrationRequiredError) as raised:
        async with app.router.lifespan_context(app):
            pytest.fail("it started")
    assert "0001_outbox, 0002_security" in str(raised.value)
    assert f"`svc-infra sql upgrade --migrations {own}`" in str(raised.value)
    await upgrade(wiring_of(app).get(AsyncDatabase), chains(own))
    async with app.router.lifespan_context(app):
        assert wiring_of(app).phase == "ready"


async def test_production_migrates_at_start_when_it_is_told_to(sqlite_url: str) -> None:
    app = made("prod", url=sqlite_url, migrate_on_start=True)
    add_db(app)
    async with app.router.lifespan_context(app):
        assert await pending(wiring_of(app).get(AsyncDatabase)) == []


async def test_the_applications_own_revisions_follow_the_librarys(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_orders.py").write_text(
        "revision = '0001_orders'\ndown_revision = None\ndef upgrade():\n    pass\n"
    )
    app = made(url=sqlite_url)
    add_db(app, migrations=tmp_path)
    async with app.router.lifespan_context(app):
        db = wiring_of(app).get(AsyncDatabase)
        assert (await current(db, chains(tmp_path)))[-1] == "0001_orders"
        assert chains(tmp_path)[0] == LIBRARY


@pytest.mark.parametrize("env", ["test", "prod"])
async def test_an_unreachable_database_ends_the_start_with_one_error(env: str) -> None:
    app = made(env, url="postgresql://app:hunter2@127.0.0.1:1/shop")
    add_db(app)
    with pytest.raises(UnavailableError, match=r"database at 127\.0\.0\.1/shop cannot be reached"):
        async with app.router.lifespan_context(app):
            pytest.fail("it started")


async def test_a_database_that_the_app_was_given_stays_open(sqlite_db: AsyncDatabase) -> None:
    app = made()
    add_db(app, database=sqlite_db)
    async with app.router.lifespan_context(app):
        await sqlite_db.ping()
        before = sqlite_db.engine.pool
    assert sqlite_db.engine.pool is before


async def test_an_app_can_start_again(sqlite_url: str) -> None:
    app = made(url=sqlite_url)
    add_db(app)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            await wiring_of(app).get(AsyncDatabase).ping()


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


async def test_readiness_asks_the_database(sqlite_url: str) -> None:
    app = made(url=sqlite_url)
    add_db(app)
    check = wiring_of(app).parts["db"].check
    assert check is not None
    async with app.router.lifespan_context(app):
        await check()
    replaced_by_a_folder(Path(sqlite_url.removeprefix("sqlite:///")))
    with pytest.raises(ConfigurationError):
        await check()


async def test_the_outbox_is_relayed_in_the_apps_wiring_while_it_runs(db: AsyncDatabase) -> None:
    app = made()
    add_db(app, database=db)
    wiring = wiring_of(app)
    handled: asyncio.Queue[object] = asyncio.Queue()

    async def handle(message: OutboxMessage) -> None:
        handled.put_nowait((message.payload, current_wiring() is wiring))

    wiring.get(OutboxRelay).register("orders", handle)
    check = wiring.parts["outbox"].check
    assert check is not None
    async with app.router.lifespan_context(app), asyncio.timeout(30):
        async with db.session() as session:
            await wiring.get(Outbox).add(session, "orders", 1)
        assert await handled.get() == (1, True)
        await check()
    with pytest.raises(UnavailableError):
        await check()


async def test_without_a_topic_nothing_is_relayed(sqlite_url: str) -> None:
    app = made(url=sqlite_url)
    add_db(app)
    async with app.router.lifespan_context(app):
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("outbox")]
        check = wiring_of(app).parts["outbox"].check
        assert check is not None
        await check()
