"""The tracker's own tables and its demo data."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, func, select

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import chains, upgrade
from svc_infra.wiring import wiring_of
from tracker import models
from tracker.app import create
from tracker.demo import seed

MIGRATIONS = Path(models.__file__).parent / "migrations"


async def test_the_migrations_make_the_tables_that_the_models_describe(db: AsyncDatabase) -> None:
    await upgrade(db, chains(MIGRATIONS))

    def difference(connection: Connection) -> list[object]:
        ours = {"include_name": lambda name, kind, _: kind != "table" or name in models.Base.metadata.tables}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **ours})
        return list(compare_metadata(context, models.Base.metadata))

    async with db.session() as session:
        assert await (await session.connection()).run_sync(difference) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_the_demo_data_can_be_made_again_and_again(engine: str, request: pytest.FixtureRequest) -> None:
    app = create(Settings(sql={"url": request.getfixturevalue(f"{engine}_url")}))
    async with app.router.lifespan_context(app):
        logins = [await seed(app), await seed(app)]
        assert len({login.email for login in logins}) == 2
        async with wiring_of(app).get(AsyncDatabase).session(read_only=True) as session:
            assert await session.scalar(select(func.count()).select_from(models.Import)) == 2
