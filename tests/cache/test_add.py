"""An app and its cache."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from svc_infra import create_app
from svc_infra.cache import Cache, MemoryCache, add_cache, cached
from svc_infra.config import AppSettings, CacheSettings, RedisSettings, Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError
from svc_infra.wiring import wiring_of
from tests.cache.conftest import until


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(transport=ASGITransport(app=app), base_url="http://app")
    async with app.router.lifespan_context(app), client:
        yield client


async def figures(client: AsyncClient) -> dict[tuple[str, ...], float]:
    page = (await client.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("cache_")
    }


calls: list[int] = []


@cached(ttl=60)
async def doubled(number: int) -> int:
    calls.append(number)
    return 2 * number


def serving(**options: Any) -> FastAPI:
    app = create_app(**options.pop("app", {}))

    @app.get("/double/{number}")
    async def double(number: int) -> int:
        return await doubled(number)

    @app.get("/plain/{number}")
    def plain(number: int) -> int:
        return tripled(number)

    add_cache(app, **options)
    return app


@cached(ttl=60)
def tripled(number: int) -> int:
    calls.append(number)
    return 3 * number


async def test_routes_share_the_cache_of_their_app() -> None:
    calls.clear()
    for _ in range(2):
        async with running(serving()) as client:
            for _ in range(3):
                assert (await client.get("/double/4")).json() == 8
                assert (await client.get("/plain/4")).json() == 12
    assert calls == [4, 4] * 2


async def test_its_metrics_are_those_of_the_app() -> None:
    async with running(serving()) as client:
        for number in (1, 1, 1, 2):
            await client.get(f"/double/{number}")
        seen = await figures(client)
        name = doubled.stats_name
        assert seen["cache_hits_total", "memory", name] == 2
        assert seen["cache_misses_total", name] == 2
        assert seen["cache_hits_total", "shared", name] == seen["cache_stale_total", name] == 0
        assert seen["cache_lock_waits_total", name] == seen["cache_refreshes_total", name] == 0
        assert seen["cache_memory_entries",] == 2
        assert seen["cache_memory_bytes",] > 0
        assert seen["cache_evictions_total",] == 0
        assert ("cache_shared_up",) not in seen
    async with running(serving()) as client:
        assert ("cache_misses_total", name) not in await figures(client)


async def test_an_app_may_run_twice_and_is_empty_the_second_time() -> None:
    app = serving()
    calls.clear()
    for _ in range(2):
        async with running(app) as client:
            await client.get("/double/7")
            await client.get("/double/7")
            assert (await figures(client))["cache_memory_entries",] == 1
    assert calls == [7, 7]


async def test_it_lives_in_redis_where_there_is_one(valkey_url: str) -> None:
    calls.clear()
    settings = Settings(redis=RedisSettings(url=valkey_url), app=AppSettings(name="My shop!"))
    apps = [serving(app={"settings": settings}) for _ in range(2)]
    for app in apps:
        async with running(app) as client:
            assert (await client.get("/double/9")).json() == 18
            assert (await client.get("/plain/9")).json() == 27
            assert (await figures(client))["cache_shared_up",] == 1
        assert wiring_of(app).get(Cache).prefix == "My-shop-:1:"
    assert calls == [9, 9]


async def test_an_app_starts_serves_and_is_ready_without_its_redis(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "svc_infra.cache")
    calls.clear()
    app = serving(url="redis://user:s3cr3t@127.0.0.1:1")
    async with running(app) as client:
        assert (await client.get("/double/3")).json() == 6
        assert (await client.get("/double/3")).json() == 6
        assert (await client.get("/_ops/ready")).status_code == 200
        cache = wiring_of(app).get(Cache)
        await until(lambda: not cache.is_connected)
        assert (await figures(client))["cache_shared_up",] == 0
    assert calls == [3]
    assert "s3cr3t" not in caplog.text


async def test_every_setting_reaches_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "URL": "memory://", "NAMESPACE": "shop", "VERSION": "7", "DEFAULT_TTL_SECONDS": "5", "MAX_ENTRIES": "3",
        "MAX_BYTES": "999", "MEMORY_TTL_SECONDS": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CACHE_{name}", value)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    app = create_app()
    add_cache(app)
    cache = wiring_of(app).get(Cache)
    assert (cache.prefix, cache.default_ttl_seconds, cache.is_shared) == ("shop:7:", 5, False)
    assert (cache.memory.max_entries, cache.memory.max_bytes, cache.levels.memory_ttl_seconds) == (3, 999, 2)


def test_the_embedded_default_is_memory() -> None:
    assert CacheSettings().url is None
    app = create_app()
    add_cache(app)
    assert not wiring_of(app).get(Cache).is_shared


async def test_a_second_call_changes_nothing_and_a_given_cache_is_its_makers_to_close() -> None:
    app, mine = create_app(), MemoryCache()
    add_cache(app, cache=mine)
    add_cache(app, url="redis://127.0.0.1:1")
    assert wiring_of(app).get(Cache) is mine
    async with running(app):
        await mine.set("key", 1)
    assert await mine.get("key") == 1


@pytest.mark.parametrize("db", ["before", "after"])
async def test_a_unit_of_work_tells_the_cache_after_its_commit(db: str, sqlite_url: str) -> None:
    app = create_app()
    if db == "before":
        add_db(app, url=sqlite_url)
    add_cache(app)
    if db == "after":
        add_db(app, url=sqlite_url)
    wiring = wiring_of(app)
    async with running(app):
        cache = wiring.get(Cache)
        await cache.set("key", 1, tags=["tag"])
        async with wiring.get(AsyncDatabase).session() as session:
            await cache.invalidate_tags("tag", session=session)
            assert await cache.get("key") == 1
        assert await cache.get("key") is None
        with pytest.raises(RuntimeError):
            async with wiring.get(AsyncDatabase).session() as session:
                await cache.set("key", 2)
                await cache.delete("key", session=session)
                raise RuntimeError
        assert await cache.get("key") == 2


async def test_without_a_database_there_is_no_commit_to_wait_for() -> None:
    app = create_app()
    add_cache(app)
    with pytest.raises(ConfigurationError, match=r"add_db\(app\)"):
        await wiring_of(app).get(Cache).delete("key", session=object())


def test_a_url_that_is_none_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError):
        add_cache(create_app(), url="http://localhost")
