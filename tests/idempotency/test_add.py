"""What an app gets: the store of its settings, the purge, and an answer to whether it is ready."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import text

from svc_infra import create_app
from svc_infra.app import SimpleRoute
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError, UnavailableError
from svc_infra.idempotency import IdempotencyStore, RedisIdempotencyStore, SqlIdempotencyStore
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent, IdempotentRoute
from svc_infra.wiring import wiring_of


def service(db: AsyncDatabase | None = None, store: IdempotencyStore | None = None, **settings: Any) -> FastAPI:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}, **settings))
    add_idempotency(app, store=store)
    if db is not None:
        add_db(app, database=db)
    return app


@pytest.mark.parametrize("store", ["auto", "sql"])
async def test_keys_are_kept_in_the_database_where_there_is_one(
    sqlite_db: AsyncDatabase, valkey_url: str, store: str
) -> None:
    app = service(sqlite_db, redis={"url": valkey_url}, idempotency={"store": store})
    async with app.router.lifespan_context(app):
        assert isinstance(wiring_of(app).get(IdempotencyStore), SqlIdempotencyStore)


@pytest.mark.parametrize(("has_db", "store"), [(False, "auto"), (True, "redis")])
async def test_keys_are_kept_in_redis_without_a_database_or_on_request(
    sqlite_db: AsyncDatabase, valkey_url: str, has_db: bool, store: str
) -> None:
    app = service(sqlite_db if has_db else None, redis={"url": valkey_url}, idempotency={"store": store})
    async with app.router.lifespan_context(app):
        assert isinstance(wiring_of(app).get(IdempotencyStore), RedisIdempotencyStore)


@pytest.mark.parametrize(
    ("store", "mend"), [("auto", "call add_db"), ("sql", "call add_db"), ("redis", "there is no REDIS_URL")]
)
async def test_a_store_that_is_missing_stops_the_start(store: str, mend: str) -> None:
    app = service(idempotency={"store": store})
    with pytest.raises(ConfigurationError, match=mend):
        async with app.router.lifespan_context(app):
            pass


async def test_a_second_call_changes_nothing(sqlite_db: AsyncDatabase) -> None:
    app = service(sqlite_db)
    add_idempotency(app, store=RedisIdempotencyStore("redis://127.0.0.1:1"))
    async with app.router.lifespan_context(app):
        assert isinstance(wiring_of(app).get(IdempotencyStore), SqlIdempotencyStore)


async def test_a_route_class_of_the_apps_own_is_kept(sqlite_db: AsyncDatabase) -> None:
    class Mine(IdempotentRoute): ...

    app = FastAPI()
    app.router.route_class = Mine
    add_idempotency(app)
    assert app.router.route_class is Mine


async def test_a_route_class_that_knows_no_keys_is_kept_beneath() -> None:
    class Mine(APIRoute): ...

    app = FastAPI()
    app.router.route_class = Mine
    add_idempotency(app)
    assert issubclass(app.router.route_class, Mine)
    assert issubclass(app.router.route_class, IdempotentRoute)


def test_routes_that_are_not_guarded_stay_what_create_app_makes_them(sqlite_db: AsyncDatabase) -> None:
    app = create_app()
    add_idempotency(app)
    add_idempotency(app)
    assert issubclass(app.router.route_class, IdempotentRoute)
    assert app.router.route_class.__mro__[1:3] == (IdempotentRoute, SimpleRoute)


async def test_a_server_that_is_gone_makes_the_app_not_ready() -> None:
    app = service(redis={"url": "redis://127.0.0.1:1"})
    async with app.router.lifespan_context(app):
        check = wiring_of(app).parts["idempotency"].check
        assert check is not None
        with pytest.raises(UnavailableError):
            await check()


async def test_what_is_kept_for_long_enough_is_deleted_while_the_app_runs(sqlite_db: AsyncDatabase) -> None:
    times = {"ttl_seconds": 0.01, "lease_seconds": 0.01, "purge_interval_seconds": 0.02}
    app = service(sqlite_db, idempotency=times)
    async with app.router.lifespan_context(app), asyncio.timeout(10):
        await wiring_of(app).get(IdempotencyStore).claim("k", "f")
        while await rows(sqlite_db):
            await asyncio.sleep(0.01)


async def rows(db: AsyncDatabase) -> int:
    async with db.session(read_only=True) as session:
        return int((await session.execute(text("SELECT count(*) FROM svc_idempotency_keys"))).scalar_one())


async def test_a_purge_that_fails_is_logged_and_tried_again(
    sqlite_db: AsyncDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(SqlIdempotencyStore):
        runs = 0

        async def purge(self, *, limit: int) -> int:
            type(self).runs += 1
            raise UnavailableError

    app = service(sqlite_db, Failing(sqlite_db), idempotency={"purge_interval_seconds": 0.01})
    with caplog.at_level(logging.WARNING):
        async with app.router.lifespan_context(app), asyncio.timeout(10):
            while Failing.runs < 2:
                await asyncio.sleep(0.01)
    assert "idempotency.purge_failed" in caplog.messages


async def test_a_plain_fastapi_app_is_guarded_as_well(sqlite_db: AsyncDatabase) -> None:
    app = service(sqlite_db)
    runs = []

    @app.post("/x", dependencies=[Idempotent(caller=lambda request: "ada")])
    async def x() -> int:
        runs.append(1)
        return len(runs)

    transport = httpx2.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url="http://x") as http:
        answers = [await http.post("/x", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.json() for answer in answers] == [1, 1]
    assert answers[1].headers["idempotent-replayed"] == "true"
