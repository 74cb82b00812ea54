"""The shop on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.idempotency import RedisIdempotencyStore, SqlIdempotencyStore
from tests.idempotency.shop import Shop


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
async def shop(request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """Its orders are in SQLite where its keys are in Valkey."""
    engine = "postgres" if request.param == "postgres" else "sqlite"
    db = AsyncDatabase(request.getfixturevalue(f"migrated_{engine}_url"))
    on_valkey = request.param == "valkey"
    store = RedisIdempotencyStore(request.getfixturevalue("valkey_url")) if on_valkey else SqlIdempotencyStore(db)
    yield Shop(db, store)
    await store.close()
    await db.dispose()


@pytest.fixture
def sql_shop(db: AsyncDatabase) -> Shop:
    """Its keys and its orders are in one database."""
    return Shop(db, SqlIdempotencyStore(db))
