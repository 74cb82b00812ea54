"""Without Redis: slower, never wrong for long, and never an error."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from svc_infra.cache import Cache, CachedFunction, RedisCache, cached
from svc_infra.cache import _redis as limits
from svc_infra.errors import ConfigurationError
from svc_infra.redis import connect
from tests.cache.conftest import Calls, MakeCache, hearing, until
from tests.cache.wire import wire

NOBODY = "redis://127.0.0.1:1"


def counted(cache: Cache, calls: Calls, **options: Any) -> CachedFunction[[int], int]:
    @cached(ttl=600, tags=["thing:{number}"], cache=cache, **options)
    async def thing(number: int) -> int:
        calls.made.append(number)
        return len(calls)

    return thing


@pytest.mark.parametrize("kind", [Cache, RedisCache])
async def test_every_operation_has_an_answer_without_redis(
    kind: type[Cache], calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "svc_infra.cache._redis")
    async with kind(NOBODY) as cache:
        in_memory = cache.memory.max_entries > 0
        await cache.set("a", 1, tags=["tag"])
        await cache.set_many({"b": "2", "c": "3"})
        assert await cache.get_many("abc") == ({"a": 1, "b": "2", "c": "3"} if in_memory else {})
        assert await cache.delete("b") is None
        assert await cache.get("b", "none") == "none"
        assert [await cache.incr("n"), await cache.incr("n")] == ([1, 2] if in_memory else [1, 1])
        assert not await cache.expire("a", 60)
        await cache.set("a", "1", tags=["tag"])
        await cache.invalidate_tags("tag")
        assert await cache.get("a") is None
        await cache.clear()
        thing = counted(cache, calls)
        assert [await thing(1), await thing(1)] == ([1, 1] if in_memory else [1, 2])
        assert await thing.refresh(1) == len(calls)
        await thing.invalidate(1)
        assert await thing(1) == len(calls)
    told = [record.message for record in caplog.records if record.message != "cache.invalidations_undelivered"]
    assert told == ["cache.redis_lost"], "once"
    assert sum(cache.stats.errors.values()) > 0


async def test_many_who_ask_at_once_without_redis_wait_for_one_computation(calls: Calls) -> None:
    async with Cache(NOBODY) as cache:
        thing = counted(cache, calls)
        assert await asyncio.gather(*(thing(1) for _ in range(100))) == [1] * 100


async def test_a_server_that_says_nothing_costs_one_wait_and_not_one_for_each_caller(
    make: MakeCache, valkey_url: str, calls: Calls
) -> None:
    async with wire(valkey_url) as line:
        cache = make(url=line.url, timeout_seconds=0.2)
        thing = counted(cache, calls)
        await cache.get("warm")
        line.freeze()
        started = time.monotonic()
        assert await asyncio.gather(*(thing(number) for number in range(50)))
        for number in range(50, 100):
            await thing(number)
        assert 0.2 <= time.monotonic() - started < 5.0
        line.thaw()
        await until(lambda: cache.is_connected)
        assert await thing.refresh(1) == 101


async def test_a_server_that_refuses_the_credentials_is_an_outage_too(valkey_url: str, calls: Calls) -> None:
    async with Cache(valkey_url.replace("redis://", "redis://user:wrong@")) as cache:
        thing = counted(cache, calls)
        assert [await thing(1), await thing(1)] == [1, 1]
        assert not cache.is_connected


async def test_what_was_invalidated_during_an_outage_is_forgotten_before_redis_is_used_again(
    make: MakeCache, valkey_url: str, calls: Calls
) -> None:
    async with wire(valkey_url) as line:
        here, there = await hearing(make(url=line.url)), await hearing(make())
        mine, theirs = counted(here, calls), counted(there, calls)
        assert [await mine(1), await mine(2), await theirs(1), await theirs(2)] == [1, 2, 1, 2]
        await here.set_many({"set": "old", "deleted": "old"})
        line.cut()
        await until(lambda: not here.is_coherent)
        await mine.invalidate(1)
        await here.invalidate_tags("thing:2")
        await here.set("set", "new")
        await here.delete("deleted")
        assert [await mine(1), await mine(2)] == [3, 4]
        assert [await theirs(1), await theirs(2)] == [1, 2], "nobody could tell them"
        line.mend()
        await until(lambda: here.is_connected)
        assert await here.get_many(["set", "deleted"]) in ({}, {"set": "new"})
        async with asyncio.timeout(5):
            while {await theirs(1), await theirs(2)} & {1, 2} or await there.get_many(["set", "deleted"]):
                await asyncio.sleep(0.001)


async def test_with_too_much_to_tell_everything_is_forgotten(
    make: MakeCache, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PENDING", 10)
    async with wire(valkey_url) as line:
        here, there = make(url=line.url), await hearing(make())
        await here.set_many({str(number): number for number in range(30)})
        await there.get_many(str(number) for number in range(30))
        line.cut()
        for number in range(11):
            await here.delete(str(number))
        line.mend()
        await until(lambda: here.is_connected)
        async with asyncio.timeout(5):
            while await there.get_many(str(number) for number in range(30)):
                await asyncio.sleep(0.001)


async def test_a_cancelled_invalidation_is_finished_all_the_same(make: MakeCache, calls: Calls) -> None:
    here, there = await hearing(make()), await hearing(make())
    mine, theirs = counted(here, calls), counted(there, calls)
    for number in range(1, 20):
        assert await mine(1) == await theirs(1) == number
        task = asyncio.create_task(mine.invalidate(1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            while await theirs(1) == number:
                await asyncio.sleep(0.001)


async def test_what_somebody_else_left_under_a_key_is_a_miss_and_counted(make: MakeCache, valkey_url: str) -> None:
    cache = make()
    async with connect(valkey_url) as admin:
        await admin.set("svc-infra:1:k:text", b"\x80pickle")
        await admin.set("svc-infra:1:k:future", b"\x02" + bytes(40))
        assert await cache.get_many(["text", "future"]) == {}
        assert cache.stats.errors["undecodable"] == 2
        await admin.lpush("svc-infra:1:k:list", "a")
        assert await cache.get("list") is None
        assert cache.stats.errors["shared"] == 1
        assert cache.is_connected, "Redis answered"
        await cache.set("list", "mine")
        assert await cache.get("list") == "mine"


async def test_a_full_server_is_no_reason_to_fail(make: MakeCache, valkey_url: str, calls: Calls) -> None:
    cache = make()
    thing = counted(cache, calls)
    async with connect(valkey_url) as admin:
        await admin.config_set("maxmemory", "1")
        try:
            assert await thing(1) == 1
            await cache.set("key", "a")
        finally:
            await admin.config_set("maxmemory", "0")
    await until(lambda: cache.is_connected)
    await thing.invalidate(1)
    assert await thing(1) == 2


async def test_a_lease_that_is_lost_keeps_nobody_from_computing(make: MakeCache, valkey_url: str, calls: Calls) -> None:
    here, there = await hearing(make()), make()
    gate = asyncio.Event()

    def slow(cache: Cache) -> CachedFunction[[], int]:
        @cached(ttl=60, lease_seconds=0.1, cache=cache)
        async def thing() -> int:
            calls.made.append(1)
            number = len(calls)
            if number == 1:
                await gate.wait()
            return number

        return thing

    first, second = slow(here), slow(there)
    computing = asyncio.create_task(first())
    await until(lambda: len(calls) == 1)
    async with connect(valkey_url) as admin:
        [lease] = [name async for name in admin.scan_iter("svc-infra:1:l:*")]
        await admin.delete(lease)
        assert await second() == 2
        gate.set()
        assert await computing == 1
        assert await first() == 2, "what was computed without the lease is not kept"


async def test_a_lease_is_renewed_while_its_holder_computes(make: MakeCache, calls: Calls) -> None:
    here, there = make(), make()

    def slow(cache: Cache) -> CachedFunction[[], int]:
        @cached(ttl=60, lease_seconds=0.15, cache=cache)
        async def thing() -> int:
            calls.made.append(1)
            await asyncio.sleep(0.6)
            return len(calls)

        return thing

    assert set(await asyncio.gather(slow(here)(), slow(there)())) == {1}
    assert there.stats_of(slow(there).stats_name).lock_waits + here.stats_of(slow(here).stats_name).lock_waits == 1


async def test_nobody_waits_for_ever_for_another_process(make: MakeCache, calls: Calls) -> None:
    here, there = make(), make()
    waiting: Any = there._shared
    waiting.lease_wait_seconds = 0.1
    gate = asyncio.Event()

    def slow(cache: Cache) -> CachedFunction[[], int]:
        @cached(ttl=60, cache=cache)
        async def thing() -> int:
            calls.made.append(1)
            number = len(calls)
            if number == 1:
                await gate.wait()
            return number

        return thing

    computing = asyncio.create_task(slow(here)())
    await until(lambda: len(calls) == 1)
    assert await slow(there)() == 2
    gate.set()
    assert await computing == 1


async def test_a_caller_that_is_cancelled_gives_its_lease_back(make: MakeCache, valkey_url: str, calls: Calls) -> None:
    cache = make()

    @cached(ttl=60, cache=cache)
    async def thing() -> int:
        calls.made.append(1)
        await asyncio.Event().wait()
        return 1

    computing = asyncio.create_task(thing())
    await until(lambda: len(calls) == 1)
    computing.cancel()
    await asyncio.wait([computing])
    async with connect(valkey_url) as admin, asyncio.timeout(5):
        while [name async for name in admin.scan_iter("svc-infra:1:l:*")]:
            await asyncio.sleep(0.001)


def test_a_url_that_is_none_is_told_at_once_and_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Cache("http://user:s3cr3t@localhost")
    assert "s3cr3t" not in str(raised.value)
