"""`@cached`: what is kept, for whom, and under which name."""

from __future__ import annotations

import asyncio
import inspect
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from svc_infra.cache import Cache, CachedFunction, CachedSyncFunction, MemoryCache, cached
from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing.clock import FakeClock
from svc_infra.wiring import Wiring
from tests.cache.conftest import Calls

if TYPE_CHECKING:
    from fractions import Fraction


class User(BaseModel):
    id: int
    tags: list[str] = []


@dataclass(frozen=True)
class Key:
    number: int


async def test_a_result_is_computed_once_for_the_same_arguments(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, cache=memory)
    async def area(width: int, height: int = 2, *, unit: str = "m") -> str:
        calls.made.append((width, height, unit))
        return f"{width * height} {unit}"

    assert [await area(3), await area(3, 2), await area(width=3), await area(3, unit="m")] == ["6 m"] * 4
    assert calls.made == [(3, 2, "m")]
    assert [await area(3, 3), await area(3, unit="km")] == ["9 m", "6 km"]
    assert len(calls) == 3


async def test_arguments_of_another_type_are_other_arguments(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    async def name(value: Any) -> str:
        return type(value).__name__

    values: list[Any] = [
        1,
        True,
        1.0,
        "1",
        None,
        b"1",
        (1,),
        [1],
        {"a": 1},
        Key(1),
        UUID(int=1),
        datetime(2030, 1, 1, tzinfo=UTC),
    ]
    for _ in range(2):
        assert [await name(value) for value in values] == [type(value).__name__ for value in values]


async def test_two_functions_never_share_a_result(memory: MemoryCache) -> None:
    def make(answer: str) -> CachedFunction[[int], str]:
        @cached(ttl=60, cache=memory)
        async def one(number: int) -> str:
            return answer

        one.__wrapped__.__qualname__ = answer
        return cached(ttl=60, cache=memory)(one.__wrapped__)

    first, second = make("first"), make("second")
    assert [await first(1), await second(1), await first(1)] == ["first", "second", "first"]


async def test_a_caller_may_change_what_it_gets(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    async def user(number: int) -> User:
        return User(id=number)

    async def spoil() -> User:
        got = await user(1)
        before = got.model_copy(deep=True)
        got.tags.append("spoilt")
        return before

    seen = [*await asyncio.gather(*(spoil() for _ in range(5))), await spoil()]
    assert seen == [User(id=1)] * 6


async def test_what_cannot_be_changed_is_one_object_for_all(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    async def key(number: int) -> Key:
        return Key(number)

    @cached(ttl=60, cache=memory, share=True)
    async def user(number: int) -> User:
        return User(id=number)

    assert await key(1) is await key(1)
    assert await user(1) is await user(1)


async def test_nothing_is_a_result_too_and_may_be_kept_for_another_time(
    memory: MemoryCache, clock: FakeClock, calls: Calls
) -> None:
    @cached(ttl=60, negative_ttl=5, jitter=0, cache=memory)
    async def find(number: int) -> str | None:
        calls.made.append(number)
        return "found" if number == 1 else None

    for _ in range(3):
        assert (await find(1), await find(2)) == ("found", None)
    assert calls.made == [1, 2]
    clock.advance(6)
    assert (await find(1), await find(2)) == ("found", None)
    assert calls.made == [1, 2, 2]


async def test_nothing_is_not_kept_where_it_is_not_wanted(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, negative_ttl=0, cache=memory)
    async def find(number: int) -> str | None:
        calls.made.append(number)
        return None

    assert [await find(1), await find(1)] == [None, None]
    assert len(calls) == 2


async def test_an_exception_reaches_everybody_who_waits_and_is_not_kept(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, cache=memory)
    async def fail(number: int) -> int:
        calls.made.append(number)
        await asyncio.sleep(0)
        raise LookupError(number)

    outcomes = await asyncio.gather(*(fail(1) for _ in range(10)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 10
    assert len(calls) == 1
    with pytest.raises(LookupError):
        await fail(1)
    assert len(calls) == 2


async def test_a_result_that_cannot_be_stored_is_given_and_told_once(
    memory: MemoryCache, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    @cached(ttl=60, cache=memory)
    async def odd(number: int) -> Any:
        calls.made.append(number)
        return {number}

    assert [await odd(1), await odd(1), await odd(2)] == [{1}, {1}, {2}]
    assert len(calls) == 3
    assert [record.message for record in caplog.records] == ["cache.result_not_stored"]
    assert memory.stats_of(odd.stats_name).errors["not_stored"] == 3


async def test_a_type_that_cannot_be_stored_is_refused_at_the_first_call(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    async def thread() -> threading.Thread:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="Thread"):
        await thread()


async def test_a_type_that_is_known_to_the_checker_only_needs_a_kind(memory: MemoryCache) -> None:
    async def half() -> Fraction:
        return 0.5  # type: ignore[return-value]

    with pytest.raises(ConfigurationError, match="give @cached kind="):
        await cached(ttl=60, cache=memory)(half)()
    assert await cached(ttl=60, cache=memory, kind=float)(half)() == 0.5


async def test_a_result_can_be_forgotten_and_computed_anew(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, cache=memory)
    async def count(name: str) -> int:
        calls.made.append(name)
        return len(calls)

    assert [await count("a"), await count("b")] == [1, 2]
    await count.invalidate(name="a")
    assert [await count("a"), await count("b")] == [3, 2]
    assert await count.refresh("b") == 4
    assert await count("b") == 4


async def test_tags_come_from_templates_or_from_a_function(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, tags=["user:{key.number}", "users"], cache=memory)
    async def by_template(key: Key) -> int:
        calls.made.append(key)
        return len(calls)

    @cached(ttl=60, tags=lambda key: [f"user:{key.number}"], cache=memory)
    async def by_function(key: Key) -> int:
        calls.made.append(key)
        return len(calls)

    for function in (by_template, by_function):
        calls.made.clear()
        assert [await function(Key(1)), await function(Key(10))] == [1, 2]
        await memory.invalidate_tags("user:1")
        assert [await function(Key(10)), await function(Key(1))] == [2, 3]
    await memory.invalidate_tags("users")
    assert [await by_function(Key(1)), await by_template(Key(1))] == [3, 4]


async def test_a_key_of_ones_own_may_be_a_template_or_a_function(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, key="sum:{a}:{b}", cache=memory)
    async def add(a: str, b: str, session: object = None) -> str:
        return a + b

    @cached(ttl=60, key=lambda path: path.lower(), cache=memory)
    async def read(path: str) -> str:
        calls.made.append(path)
        return path

    assert [await add("1:2", "3", object()), await add("1", "2:3", object())] == ["1:23", "12:3"]
    assert [await read("A"), await read("a")] == ["A", "A"]
    assert add.key("1", "2") == memory.key_name("sum:1:2", "")


async def test_an_ignored_argument_changes_nothing(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, ignore=["session"], cache=memory)
    async def user(session: object, number: int) -> int:
        calls.made.append(session)
        return number

    assert [await user(object(), 1), await user(object(), 1)] == [1, 1]
    assert len(calls) == 1
    with pytest.raises(ConfigurationError, match="give `key=`, or `ignore="):
        await cached(ttl=60, cache=memory)(user.__wrapped__)(object(), 1)


async def test_each_tenant_has_results_of_its_own_unless_they_are_everybodys(memory: MemoryCache, calls: Calls) -> None:
    @cached(ttl=60, cache=memory)
    async def own(number: int) -> int:
        calls.made.append(number)
        return len(calls)

    @cached(ttl=60, by_tenant=False, cache=memory)
    async def common(number: int) -> int:
        calls.made.append(number)
        return len(calls)

    def seen(tenant_id: str, function: CachedFunction[[int], int]) -> Any:
        async def ask() -> int:
            token = enter(Context(tenant_id=tenant_id))
            try:
                return await function(1)
            finally:
                leave(token)

        return ask()

    assert [await seen(tenant, own) for tenant in ("a", "b", "", "a", "b", "")] == [1, 2, 3, 1, 2, 3]
    assert [await seen(tenant, common) for tenant in ("a", "b", "")] == [4, 4, 4]


async def test_each_app_has_its_own_results(calls: Calls) -> None:
    @cached(ttl=60)
    async def count() -> int:
        calls.made.append(1)
        return len(calls)

    apps = [Wiring(Settings()), Wiring(Settings())]
    for wiring in apps:
        wiring.provide(Cache, MemoryCache())
    seen = []
    for wiring in (*apps, *apps):
        with wiring.active():
            seen.append(await count())
    assert seen == [1, 2, 1, 2]


async def test_outside_of_an_app_the_mend_is_told() -> None:
    @cached(ttl=60)
    async def count() -> int:
        return 1

    with pytest.raises(ConfigurationError, match=r"outside of an app.*give @cached a cache="):
        await count()
    with Wiring(Settings()).active(), pytest.raises(ConfigurationError, match=r"call add_cache\(app\) first"):
        await count()


async def test_a_cached_function_looks_like_the_function(memory: MemoryCache) -> None:
    @cached(ttl=60, cache=memory)
    async def area(width: int, height: int = 2) -> int:
        """Multiply."""
        return width * height

    @cached(ttl=60, cache=memory)
    def double(number: int) -> int:
        return 2 * number

    assert (area.__name__, area.__doc__, str(inspect.signature(area))) == (  # type: ignore[attr-defined]
        "area", "Multiply.", "(width: 'int', height: 'int' = 2) -> 'int'",
    )  # fmt: skip
    result: int = await area(3)
    assert result == double(3) == 6
    assert isinstance(area, CachedFunction)
    assert isinstance(double, CachedSyncFunction)
    assert inspect.iscoroutinefunction(area.__call__)
    with pytest.raises(TypeError, match="missing a required argument: 'width'"):
        await area()  # type: ignore[call-arg]


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0


async def test_a_method_is_cached_by_what_its_key_says(memory: MemoryCache) -> None:
    class Prices(Shop):
        @cached(ttl=60, key="{self.name}/{number}", cache=memory)
        async def price(self, number: int) -> int:
            self.calls += 1
            return number * len(self.name)

        @cached(ttl=60, key="{self.name}//{number}", cache=memory)
        def plain(self, number: int) -> int:
            self.calls += 1
            return number

    one, other = Prices("one"), Prices("other")
    assert [await one.price(2), await other.price(2), await one.price(number=2)] == [6, 10, 6]
    await Prices.price.invalidate(one, 2)
    assert [await one.price(2), one.plain(1), one.plain(1)] == [6, 1, 1]
    assert (one.calls, other.calls) == (3, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0}, {"ttl": -1}, {"ttl": float("nan")}, {"negative_ttl": -1}, {"stale_if_error": -1}, {"jitter": 1},
        {"jitter": -0.1}, {"early": -1}, {"lease_seconds": 0}, {"stale_while_revalidate": timedelta(-1)},
    ],
)  # fmt: skip
def test_a_number_that_makes_no_sense_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        cached(**options)


@pytest.mark.parametrize("options", [{"key": "{nobody}"}, {"tags": ["{nobody}"]}, {"ignore": ["nobody"]}])
def test_a_name_that_the_function_does_not_take_is_refused_at_once(options: dict[str, Any]) -> None:
    async def one(somebody: int) -> int:
        return 1

    with pytest.raises(ConfigurationError, match=r"nobody, which .*one does not take"):
        cached(ttl=1, **options)(one)


def test_a_generator_is_refused() -> None:
    async def many() -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="is a generator"):
        cached(ttl=1)(many)
