"""How long a result is used, and how many compute it at once, in one process."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from svc_infra.cache import MemoryCache, cached
from svc_infra.testing.clock import FakeClock
from tests.cache.conftest import Calls, until


async def test_a_result_is_fresh_for_its_time_to_live(memory: MemoryCache, clock: FakeClock, calls: Calls) -> None:
    @cached(ttl=timedelta(minutes=1), jitter=0, cache=memory)
    async def now() -> int:
        calls.made.append(1)
        return len(calls)

    assert await now() == 1
    clock.advance(59.9)
    assert await now() == 1
    clock.advance(0.2)
    assert await now() == 2


async def test_without_a_time_to_live_the_caches_own_is_taken(clock: FakeClock, calls: Calls) -> None:
    @cached(jitter=0, cache=MemoryCache(clock=clock, default_ttl=10))
    async def now() -> int:
        calls.made.append(1)
        return len(calls)

    assert [await now(), clock.advance(9), await now(), clock.advance(2), await now()] == [1, None, 1, None, 2]


async def test_times_to_live_are_spread(memory: MemoryCache) -> None:
    @cached(ttl=100, jitter=0.2, early=0, cache=memory)
    async def one(number: int) -> int:
        return number

    for number in range(200):
        await one(number)
    now = memory.memory.clock()
    lives = [entry.fresh_until - now for entry in memory.memory.entries.values()]
    assert 80 <= min(lives) < 85
    assert 95 < max(lives) <= 100


async def test_a_stale_result_is_given_while_a_new_one_is_computed(
    memory: MemoryCache, clock: FakeClock, calls: Calls
) -> None:
    gate = asyncio.Event()
    gate.set()

    @cached(ttl=10, jitter=0, stale_while_revalidate=20, cache=memory)
    async def price() -> int:
        calls.made.append(1)
        number = len(calls)
        await gate.wait()
        return number

    assert await price() == 1
    gate.clear()
    clock.advance(15)
    assert [await price() for _ in range(5)] == [1] * 5
    await until(lambda: len(calls) == 2)
    assert await price() == 1, "it is being computed, and nobody waits for it"
    gate.set()
    await until(lambda: memory.memory.entries[price.key()].value == 2)
    assert await price() == 2
    stats = memory.stats_of(price.stats_name)
    assert (stats.misses, stats.refreshes, stats.stale, stats.hits) == (1, 1, 6, 1)
    clock.advance(31)
    assert await price() == 3, "what is too old is not given out"


async def test_a_stale_result_stands_in_for_an_error(
    memory: MemoryCache, clock: FakeClock, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    @cached(ttl=10, jitter=0, stale_if_error=60, cache=memory)
    async def price() -> int:
        calls.made.append(1)
        if len(calls) > 1:
            raise ConnectionError("the shop is closed")
        return 1

    assert await price() == 1
    clock.advance(11)
    assert [await price() for _ in range(5)] == [1] * 5
    assert len(calls) == 2, "the origin is left alone for a second"
    clock.advance(1.1)
    assert await price() == 1
    assert len(calls) == 3
    assert {record.message for record in caplog.records} == {"cache.origin_failed"}
    clock.advance(60)
    with pytest.raises(ConnectionError):
        await price()


async def test_a_result_that_is_dear_is_renewed_before_it_ends(
    memory: MemoryCache, clock: FakeClock, calls: Calls
) -> None:
    @cached(ttl=100, jitter=0, early=1e9, cache=memory)
    async def dear() -> int:
        calls.made.append(1)
        clock.advance(1)
        return len(calls)

    assert await dear() == 1
    [entry] = memory.memory.entries.values()
    assert entry.fresh_until - entry.refresh_at == 50, "half of its life at most"
    clock.advance(51)
    assert await dear() == 1, "and nobody waits for it"
    await until(lambda: memory.memory.entries[dear.key()].value == 2)
    assert (await dear(), len(calls)) == (2, 2)


async def test_a_result_that_costs_nothing_is_not_renewed_early(memory: MemoryCache) -> None:
    @cached(ttl=100, cache=memory)
    async def cheap() -> int:
        return 1

    await cheap()
    [entry] = memory.memory.entries.values()
    assert entry.refresh_at == entry.fresh_until


async def test_a_renewal_that_fails_leaves_what_there_is(memory: MemoryCache, clock: FakeClock, calls: Calls) -> None:
    @cached(ttl=10, jitter=0, stale_while_revalidate=60, cache=memory)
    async def price() -> int:
        calls.made.append(1)
        if len(calls) > 1:
            raise ConnectionError
        return 1

    await price()
    clock.advance(11)
    assert await price() == 1
    await until(lambda: memory.stats_of(price.stats_name).errors["origin"] == 1)
    assert [await price() for _ in range(5)] == [1] * 5
    assert len(calls) == 2


async def test_no_more_than_a_hundred_renewals_run_at_once(memory: MemoryCache, clock: FakeClock) -> None:
    gate, running = asyncio.Event(), 0
    gate.set()

    @cached(ttl=10, stale_while_revalidate=60, cache=memory)
    async def price(number: int) -> int:
        nonlocal running
        running += 1
        await gate.wait()
        running -= 1
        return number

    for number in range(150):
        await price(number)
    gate.clear()
    clock.advance(11)
    assert [await price(number) for number in range(150)] == list(range(150))
    await until(lambda: running == 100)
    gate.set()
    await until(lambda: running == 0)


async def test_many_who_ask_at_once_wait_for_one_computation(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, cache=memory)
    async def slow(number: int) -> int:
        calls.made.append(number)
        await asyncio.sleep(0.01)
        return number

    assert await asyncio.gather(*(slow(n % 3) for n in range(300))) == [n % 3 for n in range(300)]
    assert sorted(calls.made) == [0, 1, 2]
    assert memory.stats_of(slow.stats_name).lock_waits == 297


async def test_when_the_one_who_computes_is_cancelled_another_takes_over(memory: MemoryCache, calls: Calls) -> None:
    gate = asyncio.Event()

    @cached(ttl=60, cache=memory)
    async def slow() -> int:
        calls.made.append(1)
        await gate.wait()
        return len(calls)

    first, *others = [asyncio.create_task(slow()) for _ in range(5)]
    await until(lambda: len(calls) == 1)
    others[0].cancel()
    first.cancel()
    await until(lambda: len(calls) == 2)
    gate.set()
    assert await asyncio.gather(*others[1:]) == [2, 2, 2]
    assert first.cancelled() or ((await asyncio.wait([first])) and first.cancelled())


async def test_what_is_invalidated_while_it_is_computed_is_not_kept(memory: MemoryCache, calls: Calls) -> None:
    gate = asyncio.Event()

    @cached(ttl=60, tags=["user:{number}"], cache=memory)
    async def user(number: int) -> int:
        calls.made.append(number)
        made = len(calls)
        await gate.wait()
        return made

    for invalidate in (lambda: user.invalidate(1), lambda: memory.invalidate_tags("user:1"), memory.clear):
        calls.made.clear()
        gate.clear()
        before = asyncio.create_task(user(1))
        await until(lambda: len(calls) == 1)
        await invalidate()
        after = asyncio.create_task(user(1))
        await until(lambda: len(calls) == 2)
        gate.set()
        assert (await before, await after) == (1, 2)
        assert await user(1) == 2
        await user.invalidate(1)
