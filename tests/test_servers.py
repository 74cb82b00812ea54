"""The servers that other tests stand on."""

from __future__ import annotations

import pytest
import redis.asyncio as redis
from sqlalchemy import text

from svc_infra.db import AsyncDatabase


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_each_database_url_names_an_empty_database(kind: str, request: pytest.FixtureRequest) -> None:
    database = AsyncDatabase(request.getfixturevalue(f"{kind}_url"))
    async with database.session() as session:
        await session.execute(text("CREATE TABLE only_here (x integer)"))
        await session.execute(text("INSERT INTO only_here VALUES (1)"))
    async with database.session(read_only=True) as session:
        assert (await session.execute(text("SELECT x FROM only_here"))).scalars().all() == [1]
    await database.dispose()


async def test_the_valkey_url_names_an_empty_server(valkey_url: str) -> None:
    async with redis.from_url(valkey_url) as client:
        assert await client.dbsize() == 0
        assert await client.set("key", "value")
