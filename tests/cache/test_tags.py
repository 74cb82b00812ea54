"""No order of writes and invalidations, on either of two sides, leaves a value that should be gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from svc_infra.cache import Cache, MemoryCache, RedisCache
from tests.cache.conftest import hearing


class Tagging(RuleBasedStateMachine):
    """Keys with tags, read through two caches over the same values, beside a plain dictionary."""

    loop: asyncio.AbstractEventLoop
    caches: list[Cache]
    round = 0

    def __init__(self) -> None:
        super().__init__()
        Tagging.round += 1
        self.model: dict[str, tuple[str, frozenset[str]]] = {}
        self.writes = 0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def full(self, name: str) -> str:
        return f"{self.round}/{name}"

    keys = st.sampled_from(["a", "b", "c"])
    tags = st.sampled_from(["x", "y", "z"])
    sides = st.integers(0, 1)

    @rule(key=keys, tags=st.frozensets(tags), side=sides)
    def put(self, key: str, tags: frozenset[str], side: int) -> None:
        self.writes += 1
        value = f"{key}{self.writes}"
        self.run(self.caches[side].set(self.full(key), value, tags=[self.full(tag) for tag in tags]))
        self.model[key] = (value, tags)

    @rule(tags=st.frozensets(tags, min_size=1), side=sides)
    def invalidate(self, tags: frozenset[str], side: int) -> None:
        self.run(self.caches[side].invalidate_tags(*map(self.full, tags)))
        self.model = {key: kept for key, kept in self.model.items() if not kept[1] & tags}

    @rule(key=keys, side=sides)
    @precondition(lambda self: self.model)
    def delete(self, key: str, side: int) -> None:
        self.run(self.caches[side].delete(self.full(key)))
        self.model.pop(key, None)

    @invariant()
    def both_sides_agree(self) -> None:
        expected = {self.full(key): kept[0] for key, kept in self.model.items()}

        async def agree() -> None:
            async with asyncio.timeout(5):
                for cache in self.caches:
                    while await cache.get_many(map(self.full, "abc")) != expected:
                        await asyncio.sleep(0.001)

        self.run(agree())


@pytest.mark.parametrize("kind", ["memory", "valkey", "two levels"])
def test_no_order_of_writes_and_invalidations_leaves_a_stale_value(kind: str, valkey_url: str) -> None:
    with asyncio.Runner() as runner:
        memory = MemoryCache()
        made = {
            "memory": lambda: memory,
            "valkey": lambda: RedisCache(valkey_url, timeout_seconds=10),
            "two levels": lambda: Cache(valkey_url, timeout_seconds=10),
        }
        Tagging.loop, Tagging.caches = runner.get_loop(), [made[kind](), made[kind]()]
        if kind == "two levels":
            for cache in Tagging.caches:
                runner.run(hearing(cache))
        checks = settings(
            max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(Tagging, settings=checks)
        for cache in Tagging.caches:
            runner.run(cache.close())
