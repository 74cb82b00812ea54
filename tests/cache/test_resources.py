"""Things with an id: what is read of one, and what changes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cache import Cache, MemoryCache, cached, invalidate_tags, resource
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.errors import ConfigurationError
from svc_infra.wiring import Wiring
from tests.cache.conftest import Calls

user = resource("user", id_field="user_id")


def reading(cache: Cache, calls: Calls) -> Any:
    @user.cache_read(ttl=60, cache=cache)
    async def get_user(user_id: int) -> str:
        calls.made.append(user_id)
        return f"{user_id} v{len(calls)}"

    return get_user


async def test_a_change_of_one_is_seen_and_no_other_is_read_again(memory: MemoryCache, calls: Calls) -> None:
    get_user = reading(memory, calls)

    @user.cache_write(cache=memory)
    async def rename(user_id: int, name: str = "x") -> str:
        return name

    assert [await get_user(number) for number in (1, 10, 11, 100)] == ["1 v1", "10 v2", "11 v3", "100 v4"]
    assert await rename(1, "Ada") == "Ada"
    assert [await get_user(number) for number in (10, 11, 100)] == ["10 v2", "11 v3", "100 v4"]
    assert await get_user(1) == "1 v5"
    await rename(name="Ada", user_id=10)
    assert await get_user(10) == "10 v6"


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True), st.data())
def test_exactly_the_one_that_changes_is_forgotten(ids: list[int], data: st.DataObject) -> None:
    import asyncio

    async def run() -> None:
        cache, calls = MemoryCache(), Calls()
        get_user = reading(cache, calls)
        for number in ids:
            await get_user(number)
        changed = data.draw(st.sampled_from(ids))
        await cache.invalidate_tags(f"user:{changed}")
        calls.made.clear()
        for number in ids:
            await get_user(number)
        assert calls.made == [changed]

    asyncio.run(run())


async def test_several_functions_read_the_same_thing(memory: MemoryCache, calls: Calls) -> None:
    get_user = reading(memory, calls)

    @user.cache_read(ttl=60, tags=["roles"], cache=memory)
    async def roles(session: str, user_id: int) -> list[str]:
        calls.made.append(user_id)
        return [session]

    @user.cache_write(tags=["team:{team}"], cache=memory)
    async def change(user_id: str, team: str) -> None: ...

    @cached(ttl=60, tags=["team:{team}"], cache=memory)
    async def members(team: str) -> int:
        calls.made.append(team)
        return 1

    async def ask() -> None:
        await get_user(1)
        await roles("a", 1)
        await members("red")

    await ask()
    await ask()
    assert calls.made == [1, 1, "red"]
    await change("1", "red")
    await ask()
    assert calls.made == [1, 1, "red"] * 2
    await memory.invalidate_tags("roles")
    await ask()
    assert calls.made == [1, 1, "red"] * 2 + [1]


async def test_a_change_that_raises_may_have_happened(memory: MemoryCache, calls: Calls) -> None:
    get_user = reading(memory, calls)

    @user.cache_write(cache=memory)
    async def rename(user_id: int) -> None:
        raise LookupError

    await get_user(1)
    with pytest.raises(LookupError):
        await rename(1)
    assert await get_user(1) == "1 v2"


async def test_a_change_in_a_transaction_is_told_after_its_commit(sqlite_db: AsyncDatabase, calls: Calls) -> None:
    cache = MemoryCache(after_commit=after_commit)
    get_user = reading(cache, calls)

    @user.cache_write(cache=cache)
    async def rename(session: AsyncSession, user_id: int) -> None:
        await session.execute(text("SELECT 1"))
        assert await get_user(user_id) == f"{user_id} v1", "nothing has changed for anybody else yet"

    await get_user(1)
    async with sqlite_db.session() as session:
        await rename(session, 1)
        assert await get_user(1) == "1 v1"
    assert await get_user(1) == "1 v2"
    with pytest.raises(LookupError):
        async with sqlite_db.session() as session:
            await rename_of(cache)(session, 1)
            raise LookupError
    assert await get_user(1) == "1 v2", "what was rolled back has not happened"


def rename_of(cache: Cache) -> Any:
    @user.cache_write(cache=cache)
    async def rename(session: AsyncSession, user_id: int) -> None: ...

    return rename


async def test_tags_and_keys_can_wait_for_a_commit(sqlite_db: AsyncDatabase) -> None:
    cache = MemoryCache(after_commit=after_commit)
    await cache.set("a", 1, tags=["tag"])
    await cache.set("b", 2)
    async with sqlite_db.session() as session:
        await cache.invalidate_tags("tag", session=session)
        await cache.delete("b", session=session)
        assert await cache.get_many("ab") == {"a": 1, "b": 2}
    assert await cache.get_many("ab") == {}


async def test_a_cache_that_knows_no_sessions_says_so(sqlite_db: AsyncDatabase, memory: MemoryCache) -> None:
    async with sqlite_db.session() as session:
        with pytest.raises(ConfigurationError, match=r"give it after_commit=svc_infra\.db\.after_commit"):
            await rename_of(memory)(session, 1)


async def test_the_app_that_runs_here_gives_the_cache(calls: Calls) -> None:
    wiring = Wiring(Settings())
    wiring.provide(Cache, MemoryCache())

    @user.cache_read(60)
    async def get_user(user_id: int) -> int:
        calls.made.append(user_id)
        return len(calls)

    with wiring.active():
        await get_user(1)
        await invalidate_tags("user:1")
        assert await get_user(1) == 2
    with pytest.raises(ConfigurationError, match="outside of an app"):
        await invalidate_tags("user:1")


def test_what_cannot_be_a_resource_is_refused_at_once() -> None:
    for name, field in (("", "id"), ("a{b}", "id"), ("user", "user id")):
        with pytest.raises(ConfigurationError, match="is no resource"):
            resource(name, id_field=field)

    async def rename(number: int) -> None: ...

    def plain(user_id: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"user_id, which .*rename does not take"):
        user.cache_write()(rename)
    with pytest.raises(ConfigurationError, match=r"user_id, which .*rename does not take"):
        user.cache_read(60)(rename)
    with pytest.raises(ConfigurationError, match="plain is not async"):
        user.cache_write()(plain)  # type: ignore[arg-type]
