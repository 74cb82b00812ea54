"""`@cached` on functions that are not async, in threads, in the loop and without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from svc_infra.cache import Cache, MemoryCache, cached
from svc_infra.testing.clock import FakeClock
from tests.cache.conftest import Calls, until


def plain(cache: Cache, calls: Calls, gate: threading.Event | None = None, **options: Any) -> Callable[[int], int]:
    @cached(ttl=60, jitter=0, cache=cache, **options)
    def double(number: int) -> int:
        calls.made.append((number, threading.get_ident()))
        if gate is not None:
            assert gate.wait(10)
        if number < 0:
            raise LookupError(number)
        return 2 * number

    return double


def test_a_plain_function_is_cached_where_no_loop_runs(calls: Calls) -> None:
    double: Any = plain(MemoryCache(), calls)
    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert len(calls) == 2
    double.invalidate(2)
    assert [double(2), double.refresh(3), double(3)] == [4, 6, 6]
    assert len(calls) == 4


async def test_a_plain_function_is_cached_in_the_loops_own_thread(memory: MemoryCache, calls: Calls) -> None:
    double: Any = plain(memory, calls)
    assert [double(2), double(2)] == [4, 4]
    double.invalidate(2)
    assert [double(2), double.refresh(2), double(2)] == [4, 4, 4]
    assert len(calls) == 3


async def test_threads_that_ask_at_once_wait_for_one_computation_in_its_callers_thread(
    memory: MemoryCache, calls: Calls
) -> None:
    gate = threading.Event()
    double: Any = plain(memory, calls, gate)
    asking = [asyncio.create_task(asyncio.to_thread(double, 2)) for _ in range(4)]
    await until(lambda: memory.stats_of(double.stats_name).lock_waits == 3)
    gate.set()
    assert await asyncio.gather(*asking) == [4] * 4
    [(_, thread)] = calls.made
    assert thread != threading.get_ident()


async def test_cached_functions_nest_in_threads_deeper_than_any_pool(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    def below(depth: int) -> int:
        return 0 if depth == 0 else 1 + below(depth - 1)

    async with asyncio.timeout(20):
        assert await asyncio.to_thread(below, 100) == 100


async def test_an_error_of_a_plain_function_reaches_its_thread(memory: MemoryCache, calls: Calls) -> None:
    double: Any = plain(memory, calls)
    with pytest.raises(LookupError):
        await asyncio.to_thread(double, -1)
    assert await asyncio.to_thread(double, 1) == 2


async def test_a_plain_function_is_renewed_behind_its_callers_back(
    memory: MemoryCache, clock: FakeClock, calls: Calls
) -> None:
    double: Any = plain(memory, calls, stale_while_revalidate=60)
    assert await asyncio.to_thread(double, 2) == 4
    clock.advance(61)
    assert await asyncio.to_thread(double, 2) == 4
    await until(lambda: len(calls) == 2)


def test_a_plain_function_without_a_loop_survives_an_error_too(clock: FakeClock) -> None:
    failing = False

    @cached(ttl=10, jitter=0, stale_if_error=60, cache=MemoryCache(clock=clock))
    def price() -> int:
        if failing:
            raise ConnectionError
        return 1

    assert price() == 1
    failing = True
    clock.advance(11)
    assert price() == 1
    clock.advance(60)
    with pytest.raises(ConnectionError):
        price()
