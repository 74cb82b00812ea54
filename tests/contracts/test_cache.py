"""What every cache does, wherever it keeps its values: in memory, in Valkey, or in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from svc_infra.cache import Cache, MemoryCache, RedisCache, cached
from svc_infra.errors import ConfigurationError, ConflictError, ValidationError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing.clock import FakeClock


class User(BaseModel):
    id: UUID
    name: str


@dataclass(frozen=True)
class Point:
    x: int
    y: int


USER = User(id=UUID(int=7), name="Ada")
AT = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Backend:
    """One way to keep values.

    Attributes:
        cache: The cache.
        make: One more over the same values, as another process has it.
    """

    name: str
    clock: FakeClock
    cache: Cache
    make: Callable[..., Cache]


@pytest.fixture(params=["memory", "valkey", "two levels"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each of them in turn."""
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        only = MemoryCache(clock=clock)

        def make(**options: Any) -> Cache:
            cache: Cache
            if request.param == "memory":
                cache = MemoryCache(clock=clock, **options) if options else only
            else:
                kind = RedisCache if request.param == "valkey" else Cache
                cache = kind(request.getfixturevalue("valkey_url"), clock=clock, timeout_seconds=10, **options)
            stack.push_async_callback(cache.close)
            return cache

        yield Backend(request.param, clock, make(), make)


@pytest.fixture
def cache(backend: Backend) -> Cache:
    return backend.cache


@pytest.fixture
def clock(backend: Backend) -> FakeClock:
    return backend.clock


@contextmanager
def tenant(tenant_id: str) -> Iterator[None]:
    token = enter(Context(tenant_id=tenant_id))
    try:
        yield
    finally:
        leave(token)


async def hears(cache: Cache) -> None:
    """Wait until this process hears what others invalidate."""
    await cache.start()
    async with asyncio.timeout(10):
        while cache.is_shared and cache.memory.max_entries and not cache.is_coherent:
            await asyncio.sleep(0.005)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [None, 0, 5, -3, True, "ü\u0000", b"\xff", 1.5, [1, {"a": None}], {"at": AT}, 2**63])
async def test_a_plain_value_is_kept(backend: Backend, value: Any) -> None:
    await backend.cache.set("key", value, 60)
    for cache in (backend.cache, backend.make()):
        back = await cache.get("key", "nothing")
        assert (back, type(back)) == (value, type(value))


async def test_a_key_that_was_never_set_gives_the_default(cache: Cache) -> None:
    assert await cache.get("key") is None
    assert await cache.get("key", 3) == 3


@pytest.mark.parametrize(("kind", "value"), [(User, USER), (Point, Point(1, 2)), (list[User], [USER]), (UUID, USER.id)])
async def test_a_typed_value_is_kept_with_its_type(backend: Backend, kind: Any, value: Any) -> None:
    await backend.cache.set("key", value, 60, kind=kind)
    assert await backend.cache.get("key", kind=kind) == value
    assert await backend.make().get("key", kind=kind) == value
    assert await backend.cache.get("key") is None, "a value of another type is none"


async def test_a_value_that_would_come_back_as_another_is_refused_and_nothing_is_stored(cache: Cache) -> None:
    await cache.set("key", 1)
    with pytest.raises(ValidationError, match="User"):
        await cache.set_many({"other": 1, "key": USER})
    assert (await cache.get("key"), await cache.get("other")) == (1, None)


async def test_what_a_caller_does_to_a_value_is_its_own_affair(cache: Cache) -> None:
    value = {"list": [1]}
    await cache.set("key", value)
    value["list"].append(2)
    got = await cache.get("key")
    got["list"].append(3)
    assert await cache.get("key") == {"list": [1]}


async def test_a_value_lives_as_long_as_it_was_given(cache: Cache, clock: FakeClock) -> None:
    await cache.set("brief", "a", timedelta(seconds=10))
    await cache.set("default", "b")
    clock.advance(9.9)
    assert await cache.get("brief") == "a"
    clock.advance(0.2)
    assert await cache.get("brief") is None
    assert await cache.get("default") == "b"
    clock.advance(300)
    assert await cache.get("default") is None


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), timedelta(0)])
async def test_a_time_to_live_that_is_none_is_refused(cache: Cache, ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl is"):
        await cache.set("key", 1, ttl)


async def test_the_last_value_stands(backend: Backend) -> None:
    other = backend.make()
    await hears(backend.cache)
    await hears(other)
    for value in ("a", "b", 3, "c"):
        await backend.cache.set("key", value)
        assert await backend.cache.get("key") == value
        async with asyncio.timeout(5):
            while await other.get("key") != value:
                await asyncio.sleep(0.001)


async def test_many_are_set_and_got_at_once(backend: Backend) -> None:
    await backend.cache.set_many({"a": 1, "b": "two", "c": None}, 60)
    expected = {"a": 1, "b": "two", "c": None}
    assert await backend.cache.get_many(["a", "b", "c", "d"]) == expected
    assert await backend.make().get_many(iter(["d", "c", "b", "a"])) == expected
    assert await backend.cache.get_many([]) == {}
    await backend.cache.set_many({})


async def test_more_than_one_command_can_hold_is_set_got_and_deleted(cache: Cache) -> None:
    many = {f"key {number}": [number] for number in range(2500)}
    await cache.set_many(many)
    assert await cache.get_many(many) == many
    assert await cache.delete(*many) in (2500, len(many))
    assert await cache.get_many(many) == {}


async def test_a_deleted_key_is_gone_everywhere(backend: Backend) -> None:
    other = backend.make()
    await hears(other)
    await backend.cache.set_many({"a": "1", "b": "2"})
    assert await other.get("a") == "1"
    assert await backend.cache.delete("a", "c") == 1
    assert await backend.cache.get("a") is None
    async with asyncio.timeout(5):
        while await other.get("a") is not None:
            await asyncio.sleep(0.001)
    assert await other.get("b") == "2"


async def test_a_long_key_is_a_key(cache: Cache) -> None:
    await cache.set("k" * 5000, 1)
    await cache.set("k" * 5000 + "2", 2)
    assert (await cache.get("k" * 5000), await cache.get("k" * 5000 + "2")) == (1, 2)


async def test_everything_is_cleared(backend: Backend) -> None:
    other = backend.make(namespace="other")
    await other.set("key", 1)
    await backend.cache.set_many({str(number): number for number in range(1500)})
    await backend.cache.clear()
    assert await backend.cache.get_many(str(number) for number in range(1500)) == {}
    assert await other.get("key") == 1


# ------------------------------------------------------------------------------------------------------------ counting


async def test_a_counter_begins_at_zero_and_is_read_like_any_value(backend: Backend) -> None:
    assert await backend.cache.incr("count") == 1
    assert await backend.make().incr("count", 5) == 6
    assert await backend.cache.incr("count", -10) == -4
    assert await backend.make().get("count") == -4


async def test_a_number_that_was_set_is_counted_on(cache: Cache) -> None:
    await cache.set("count", 41)
    assert await cache.incr("count") == 42


async def test_many_who_count_at_once_lose_nothing(backend: Backend) -> None:
    caches = [backend.make() for _ in range(3)]
    await asyncio.gather(*(cache.incr("count", 2) for cache in caches for _ in range(50)))
    assert await backend.cache.get("count") == 300


async def test_what_is_no_whole_number_cannot_be_counted(cache: Cache) -> None:
    await cache.set("text", "five")
    await cache.set("tagged", 5, tags=["tag"])
    await cache.set("typed", 5, kind=int)
    for key in ("text", "tagged", "typed"):
        with pytest.raises(ConflictError, match=f"{key} holds no whole number"):
            await cache.incr(key)
    assert [await cache.get("text"), await cache.get("tagged"), await cache.get("typed", kind=int)] == ["five", 5, 5]


async def test_counting_does_not_lengthen_a_counters_life(backend: Backend, valkey_url: str) -> None:
    await backend.cache.incr("count", ttl=100)
    await backend.cache.incr("count", ttl=1000)
    if backend.name == "memory":
        backend.clock.advance(101)
        assert await backend.cache.get("count") is None
    else:
        assert 99_000 < await life_of(valkey_url, "svc-infra:1:k:count") <= 100_000


async def life_of(url: str, name: str) -> int:
    from svc_infra.redis import connect

    async with connect(url) as client:
        return int(await client.pttl(name))


# ------------------------------------------------------------------------------------------------------------ expiring


async def test_a_value_can_be_given_another_life(backend: Backend) -> None:
    cache, clock = backend.cache, backend.clock
    await cache.set("key", "a", 10)
    assert await cache.get("key") == "a"
    assert await cache.expire("key", 100)
    clock.advance(50)
    assert await cache.get("key") == "a"
    assert await backend.make().get("key") == "a"
    assert await cache.expire("key", 5)
    clock.advance(6)
    assert await cache.get("key") is None


async def test_a_counter_can_be_given_another_life(cache: Cache) -> None:
    await cache.incr("count", 7)
    assert await cache.expire("count", 100)
    assert await cache.incr("count") == 8


async def test_what_is_not_there_cannot_be_given_another_life(cache: Cache) -> None:
    assert not await cache.expire("key", 100)
    assert await cache.get("key") is None


# ---------------------------------------------------------------------------------------------------------------- tags


async def test_a_tag_forgets_what_has_it_and_nothing_else(backend: Backend) -> None:
    cache = backend.cache
    await cache.set("one", "1", tags=["user:1", "users"])
    await cache.set("ten", "10", tags=["user:10", "users"])
    await cache.set("bare", "0")
    await cache.invalidate_tags("user:1")
    assert await cache.get_many(["one", "ten", "bare"]) == {"ten": "10", "bare": "0"}
    assert await backend.make().get_many(["one", "ten", "bare"]) == {"ten": "10", "bare": "0"}
    await cache.invalidate_tags("users", "unknown")
    assert await cache.get_many(["one", "ten", "bare"]) == {"bare": "0"}


async def test_a_value_set_after_its_tag_was_invalidated_counts(cache: Cache) -> None:
    await cache.set("key", "a", tags=["tag"])
    await cache.invalidate_tags("tag")
    await cache.set("key", "b", tags=["tag"])
    assert await cache.get("key") == "b"
    assert await cache.get("key") == "b"


# ------------------------------------------------------------------------------------------------------ whose they are


async def test_namespaces_and_versions_share_nothing(backend: Backend) -> None:
    caches = [backend.make(), backend.make(namespace="shop"), backend.make(version="2")]
    for number, cache in enumerate(caches):
        await cache.set("key", str(number), tags=["tag"])
    await caches[0].invalidate_tags("tag")
    assert [await cache.get("key") for cache in caches] == [None, "1", "2"]


@pytest.mark.parametrize("name", ["", "a b", "a*", "a:b", "ä", "x" * 65])
def test_a_namespace_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        MemoryCache(namespace=name)


async def test_keys_are_those_of_the_tenant_in_context(cache: Cache) -> None:
    await cache.set("key", "everybody's")
    with tenant("acme"):
        assert await cache.get("key") is None
        await cache.set("key", "acme's", tags=["tag"])
        assert await cache.incr("count") == 1
        assert await cache.get("key") == "acme's"
    with tenant("umbrella"):
        assert await cache.get("key") is None
        assert await cache.incr("count") == 1
    assert await cache.get("key") == "everybody's"
    await cache.invalidate_tags("tag")
    with tenant("acme"):
        assert await cache.get("key") is None, "tags are those of all tenants"


async def test_a_cache_can_be_made_for_all_tenants(backend: Backend) -> None:
    cache = backend.make(by_tenant=False)
    await cache.set("key", 1)
    with tenant("acme"):
        assert await cache.get("key") == 1


# ----------------------------------------------------------------------------------------------------------- functions


async def test_a_cached_function_is_called_once(backend: Backend) -> None:
    calls: list[int] = []

    def make(cache: Cache) -> Any:
        @cached(ttl=60, cache=cache, kind=User)
        async def get_user(number: int) -> User:
            calls.append(number)
            return User(id=UUID(int=number), name="Ada")

        return get_user

    first, second = make(backend.cache), make(backend.make())
    for get_user in (first, first, second, second):
        assert await get_user(7) == USER
    assert calls == [7]
    assert (await first(8)).id == UUID(int=8)
    assert calls == [7, 8]


async def test_a_key_of_a_function_is_a_key_of_the_cache(cache: Cache) -> None:
    @cached(ttl=60, key="user:{number}", cache=cache)
    async def get_user(number: int) -> dict[str, int]:
        return {"number": number}

    await get_user(7)
    assert await cache.get("user:7", kind=dict[str, int]) == {"number": 7}
    assert await cache.delete("user:7") == 1
