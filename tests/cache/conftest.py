"""Caches that the tests of this room share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from svc_infra.cache import Cache, MemoryCache
from svc_infra.testing.clock import FakeClock

MakeCache = Callable[..., Cache]


class Calls:
    """What a function was called with."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __len__(self) -> int:
        return len(self.made)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def memory(clock: FakeClock) -> AsyncIterator[MemoryCache]:
    """A cache in memory, whose time is `clock`."""
    async with MemoryCache(clock=clock) as cache:
        yield cache


@pytest.fixture
async def make(valkey_url: str) -> AsyncIterator[MakeCache]:
    """Makes caches over the same Valkey, each as another process has it."""
    async with AsyncExitStack() as stack:

        def one(url: str = valkey_url, kind: type[Cache] = Cache, **options: Any) -> Cache:
            cache = kind(url, **{"retry_seconds": 0.05, "timeout_seconds": 10, **options})
            stack.push_async_callback(cache.close)
            return cache

        yield one


async def until(fact: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(seconds):
        while not fact():
            await asyncio.sleep(0.002)


async def hearing(cache: Cache) -> Cache:
    """The cache, once it hears what others invalidate."""
    await cache.start()
    await until(lambda: cache.is_coherent)
    return cache
