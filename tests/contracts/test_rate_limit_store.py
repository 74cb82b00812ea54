"""What every store of rate limits does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.crc import key_slot

from svc_infra.errors import SvcInfraError
from svc_infra.middleware.gcra import Rate, Use
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore, RateLimitStore, RedisRateLimitStore
from svc_infra.redis import connect

PATIENT_SECONDS = 10.0  # the machine may be busy, and what is asked here is not how fast the store is
DAILY = Rate.parse("3/day")

Make = Callable[[], RateLimitStore]


@pytest.fixture(params=["memory", "valkey"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes one more client of each store in turn."""
    made: list[RateLimitStore] = []
    if request.param == "memory":
        only = MemoryRateLimitStore()

        def make() -> RateLimitStore:
            return only
    else:
        url = request.getfixturevalue("valkey_url")

        def make() -> RateLimitStore:
            made.append(RedisRateLimitStore(url, timeout_seconds=PATIENT_SECONDS))
            return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def store(make: Make) -> RateLimitStore:
    return make()


async def passes(store: RateLimitStore, *uses: Use) -> bool:
    return all(verdict.allowed for verdict in await store.take(uses))


async def test_as_many_as_the_rate_says_pass_and_the_verdict_counts_them_down(store: RateLimitStore) -> None:
    for left in (2, 1, 0):
        (verdict,) = await store.take([Use("a", DAILY)])
        assert (verdict.allowed, verdict.remaining, verdict.retry_after_seconds) == (True, left, 0)
        assert verdict.reset_after_seconds == pytest.approx(86_400 / 3 * (3 - left), abs=PATIENT_SECONDS)
        assert verdict.left()[1] == pytest.approx(86_400 / 3, abs=PATIENT_SECONDS)
    (refused,) = await store.take([Use("a", DAILY)])
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert refused.retry_after_seconds == pytest.approx(86_400 / 3, abs=PATIENT_SECONDS)
    assert refused.left()[:2] == (0, math.ceil(refused.retry_after_seconds))


async def test_keys_are_counted_apart(store: RateLimitStore) -> None:
    once = Rate.parse("1/day")
    assert await passes(store, Use("a", once))
    assert await passes(store, Use("b", once))
    assert not await passes(store, Use("a", once))


async def test_when_one_use_is_refused_no_key_is_charged(store: RateLimitStore) -> None:
    once = Rate.parse("1/day")
    assert await passes(store, Use("tight", once), Use("wide", DAILY))
    for _ in range(5):
        wide, tight = await store.take([Use("wide", DAILY), Use("tight", once)])
        assert (wide.allowed, wide.remaining, tight.allowed) == (True, 2, False)
    assert await passes(store, Use("wide", DAILY, 2))
    assert not await passes(store, Use("wide", DAILY))


async def test_a_use_costs_what_it_says(store: RateLimitStore) -> None:
    rate = Rate.parse("10/day")
    (verdict,) = await store.take([Use("a", rate, 7)])
    assert (verdict.allowed, verdict.remaining) == (True, 3)
    (verdict,) = await store.take([Use("a", rate, 4)])
    assert (verdict.allowed, verdict.remaining) == (False, 3)
    assert verdict.retry_after_seconds == pytest.approx(8640, abs=PATIENT_SECONDS)
    (verdict,) = await store.take([Use("a", rate, 0)])
    assert (verdict.allowed, verdict.remaining) == (True, 3)
    assert await passes(store, Use("a", rate, 3))


@pytest.mark.parametrize("cost", [4, 10**9])
async def test_what_costs_more_than_the_rate_never_passes(store: RateLimitStore, cost: int) -> None:
    assert not await passes(store, Use("a", DAILY, cost))
    assert await passes(store, Use("a", DAILY, 3))


@pytest.mark.parametrize("text", ["999999999/366 days", "1/366 days", "7/s", "999999999/s"])
async def test_the_widest_rates_are_counted_exactly(store: RateLimitStore, text: str) -> None:
    rate = Rate.parse(text)
    (verdict,) = await store.take([Use("a", rate, rate.limit)])
    assert (verdict.allowed, verdict.remaining) == (True, 0)
    assert verdict.reset_after_seconds == rate.period_seconds


async def test_what_was_used_comes_back_with_time(store: RateLimitStore) -> None:
    rate = Rate.parse("20/s")
    assert await passes(store, Use("a", rate, 20))
    async with asyncio.timeout(PATIENT_SECONDS):
        while not await passes(store, Use("a", rate)):
            pass


async def test_two_hundred_clients_at_once_get_what_the_rate_allows_and_not_one_more(make: Make) -> None:
    rate = Rate.parse("1000/366 days")  # 8.8 hours for one more
    stores = [make() for _ in range(200)]

    async def client(store: RateLimitStore) -> int:
        return sum([await passes(store, Use("everybody", rate), Use("other", rate)) for _ in range(10)])

    admitted = await asyncio.gather(*map(client, stores))
    assert sum(admitted) == 1000


class TestMemory:
    """What is the memory's own."""

    async def test_keys_beyond_the_bound_push_out_those_not_used_for_longest(self) -> None:
        store, once = MemoryRateLimitStore(max_keys=3), Rate.parse("1/day")
        for key in "abc":
            assert await passes(store, Use(key, once))
        assert not await passes(store, Use("a", once))  # used again
        assert await passes(store, Use("d", once))  # pushes out b
        for key in "cad":
            assert not await passes(store, Use(key, once))
        assert await passes(store, Use("b", once))


class TestRedis:
    """What is Redis' own."""

    async def test_a_server_that_has_forgotten_the_script_is_told_it_again(self, valkey_url: str) -> None:
        store = RedisRateLimitStore(valkey_url, timeout_seconds=PATIENT_SECONDS)
        async with connect(valkey_url) as client:
            for left in (2, 1):
                (verdict,) = await store.take([Use("a", DAILY)])
                assert verdict.remaining == left
                await client.script_flush()
        await store.close()

    async def test_all_keys_lie_in_one_slot_and_vanish_when_nothing_is_used_up(self, valkey_url: str) -> None:
        async with connect(valkey_url) as client:
            store = RedisRateLimitStore(client, prefix="shop", timeout_seconds=PATIENT_SECONDS)
            await store.take([Use("a", Rate.parse("10/s")), Use("b", Rate.parse("2/hour"))])
            keys: list[Any] = sorted(await client.keys())
            assert keys[-1] == b"{shop}:b"
            assert {key_slot(key) for key in keys} == {key_slot(b"shop")}
            assert 1_790_000 < await client.pttl("{shop}:b") <= 1_800_001
            async with asyncio.timeout(PATIENT_SECONDS):
                while await client.exists("{shop}:a"):
                    pass
            await store.close()
            assert await client.ping()  # whoever made a client closes it

    async def test_a_request_is_one_round_trip_whatever_the_number_of_its_limits(self, valkey_url: str) -> None:
        store = RedisRateLimitStore(valkey_url, timeout_seconds=PATIENT_SECONDS)
        uses = [Use(key, Rate.parse("5/minute")) for key in "abcdefgh"]
        await store.take(uses)  # connects, and loads the script
        async with connect(valkey_url) as client, client.monitor() as monitor:
            await client.ping()  # connects
            for _ in range(3):
                await store.take(uses)
            await client.set("end", "1")
            seen: list[str] = []
            while "SET" not in seen:
                command = await monitor.next_command()
                if command["client_type"] != "lua":
                    seen.append(command["command"].partition(" ")[0])
        await store.close()
        assert seen[seen.index("PING") + 1 :] == ["EVALSHA", "EVALSHA", "EVALSHA", "SET"]

    async def test_an_answer_that_came_too_late_is_nobody_elses(self, valkey_url: str) -> None:
        store = RedisRateLimitStore(valkey_url, timeout_seconds=1.0)
        await store.take([Use("a", DAILY)])
        async with connect(valkey_url) as client:
            await client.client_pause(1500, all=True)
            with pytest.raises(TimeoutError):
                await store.take([Use("a", DAILY)])
            await client.ping()  # waits for the end of the pause
            verdicts = await store.take([Use("b", Rate.parse("7/day")), Use("c", DAILY)])
        assert [verdict.remaining for verdict in verdicts] == [6, 2]
        await store.close()

    async def test_a_key_that_holds_something_else_is_an_error_and_not_an_admission(self, valkey_url: str) -> None:
        store = RedisRateLimitStore(valkey_url, timeout_seconds=PATIENT_SECONDS)
        async with connect(valkey_url) as client:
            await client.set("{rate_limit}:a", "nonsense")
        with pytest.raises(SvcInfraError, match="refused a command"):
            await store.take([Use("a", DAILY)])
        await store.close()
