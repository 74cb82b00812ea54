"""A handler's deadline ends the statement that it waits for, on the server too."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from svc_infra.db.database import AsyncDatabase
from tests.middleware.asgi import call, only

RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"


@pytest.fixture
async def database(postgres_url: str) -> AsyncDatabase:
    return AsyncDatabase(postgres_url)


async def test_a_statement_does_not_outlive_the_handler_that_waits_for_it(database: AsyncDatabase) -> None:
    async def running() -> int:
        async with database.session(read_only=True) as session:
            return int((await session.execute(text(RUNNING))).scalar_one())

    async def endpoint(request: Request) -> Response:
        async with database.session() as session:
            await session.execute(text("SELECT pg_sleep(3600)"))
        return PlainTextResponse("never")

    answer = asyncio.create_task(call(only(endpoint, edge={"handler_timeout_seconds": 1.0})))
    async with asyncio.timeout(30):
        while not await running():
            await asyncio.sleep(0.01)
        assert (await answer).is_problem(504, "deadline_exceeded")
        while await running():
            await asyncio.sleep(0.01)
        await database.ping()
    await database.dispose()
