"""Stores that cannot be reached, holders that stall or die, and what becomes of their keys."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import Depends

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession
from svc_infra.errors import UnavailableError
from svc_infra.idempotency import Answer, Claim, RedisIdempotencyStore, SqlIdempotencyStore
from svc_infra.idempotency.http import Idempotent
from svc_infra.idempotency.store import Refusal
from svc_infra.redis import connect
from svc_infra.testing.clock import FakeClock
from tests.idempotency.shop import INSERT, Shop, caller_of, key

NOWHERE = "redis://127.0.0.1:1"


def guard(shop: Shop, **options: object) -> None:
    @shop.app.post("/orders", dependencies=[Idempotent(caller=caller_of, **options)])  # type: ignore[arg-type]
    async def order(session: DbSession) -> int:
        shop.runs += 1
        run = shop.runs
        await session.execute(INSERT, {"item": "tea"})
        if not shop.may_go.is_set():
            await shop.hold()
        return run


@asynccontextmanager
async def without_a_store(db: AsyncDatabase) -> AsyncIterator[Shop]:
    store = RedisIdempotencyStore(NOWHERE)
    shop = Shop(db, store)
    shop.may_go.set()
    yield shop
    await store.close()


@pytest.mark.parametrize("options", [{}, {"required": False}])
async def test_while_the_store_is_down_a_key_is_refused(sqlite_db: AsyncDatabase, options: dict[str, bool]) -> None:
    async with without_a_store(sqlite_db) as shop:
        guard(shop, **options)
        async with shop.client() as client:
            refused = await client.post("/orders", headers=key())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert shop.runs == 0


async def test_an_optional_key_may_be_left_unguarded_while_the_store_is_down(sqlite_db: AsyncDatabase) -> None:
    async with without_a_store(sqlite_db) as shop:
        guard(shop, required=False, when_unavailable="run")
        async with shop.client() as client:
            answers = [(await client.post("/orders", headers=key())).json() for _ in range(2)]
    assert answers == [1, 2]


class Forgetful(RedisIdempotencyStore):
    """A server that cannot be reached any more when the handler is done."""

    async def finish(self, claim: Claim, answer: Answer, **_: object) -> bool:
        raise UnavailableError("gone")


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(sqlite_db: AsyncDatabase, valkey_url: str) -> None:
    store = Forgetful(valkey_url)
    shop = Shop(sqlite_db, store)
    shop.may_go.set()
    guard(shop)
    async with shop.client() as client:
        assert (await client.post("/orders", headers=key())).json() == 1
        assert (await client.post("/orders", headers=key())).status_code == 409  # until the lease ends
        counted = (await client.get("/metrics")).text
    assert 'idempotency_requests_total{outcome="not_kept"} 1.0' in counted
    assert (shop.runs, await shop.orders()) == (1, 1)
    await store.close()


async def test_a_stalled_request_that_lost_its_key_leaves_no_effect(postgres_db: AsyncDatabase) -> None:
    clock = FakeClock()
    shop = Shop(postgres_db, SqlIdempotencyStore(postgres_db, lease_seconds=60, clock=clock))
    guard(shop)
    async with shop.client() as client:
        stalled = asyncio.create_task(client.post("/orders", headers=key()))
        await shop.arrived.wait()
        assert (await client.post("/orders", headers=key())).status_code == 409
        clock.advance(61)
        shop.arrived.clear()
        second = asyncio.create_task(client.post("/orders", headers=key()))
        await shop.arrived.wait()
        shop.may_go.set()
        answers = await asyncio.gather(stalled, second)
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        assert answers[1].json() == 2
        assert "another one with its key" in answers[0].json()["detail"]
        assert answers[0].headers["retry-after"] == "1"
        assert (await client.post("/orders", headers=key())).json() == 2
        assert (shop.runs, await shop.orders()) == (2, 1)


async def test_a_request_that_was_cancelled_gives_its_key_back(shop: Shop) -> None:
    guard(shop)
    async with shop.client() as client:
        first = asyncio.create_task(client.post("/orders", headers=key()))
        await shop.arrived.wait()
        first.cancel()
        await asyncio.wait({first})
        shop.may_go.set()
        assert (await client.post("/orders", headers=key())).json() == 2
        assert await shop.orders() == 1


class Hesitant(SqlIdempotencyStore):
    """One that has given a key a while before it says so."""

    claimed: asyncio.Event
    may_say_so: asyncio.Event

    async def claim(self, key: str, fingerprint: str) -> Claim | Answer | Refusal:
        outcome = await super().claim(key, fingerprint)
        self.claimed.set()
        await self.may_say_so.wait()
        return outcome


async def test_a_request_that_was_cancelled_while_it_got_its_key_gives_it_back_too(sqlite_db: AsyncDatabase) -> None:
    store = Hesitant(sqlite_db)
    store.claimed, store.may_say_so = asyncio.Event(), asyncio.Event()
    shop = Shop(sqlite_db, store)
    shop.may_go.set()
    guard(shop)
    async with shop.client() as client:
        first = asyncio.create_task(client.post("/orders", headers=key()))
        await store.claimed.wait()
        first.cancel()
        store.may_say_so.set()
        await asyncio.wait({first})
        assert first.cancelled()
        assert (await client.post("/orders", headers=key())).json() == 1


async def test_a_plain_handler_that_outlives_its_request_keeps_its_key(shop: Shop) -> None:
    may_end, loop = threading.Event(), asyncio.get_running_loop()

    @shop.app.post("/orders", dependencies=[Idempotent(caller=caller_of)])
    def order() -> None:
        shop.runs += 1
        loop.call_soon_threadsafe(shop.arrived.set)
        may_end.wait(10)

    async with shop.client() as client:
        first = asyncio.create_task(client.post("/orders", headers=key()))
        await shop.arrived.wait()
        first.cancel()  # as a deadline does
        await asyncio.wait({first})
        try:
            assert (await client.post("/orders", headers=key())).status_code == 409
        finally:
            may_end.set()
    assert shop.runs == 1


async def test_a_committed_effect_has_its_answer_whatever_becomes_of_the_request_after_it(shop: Shop) -> None:
    async def break_off() -> AsyncIterator[None]:
        yield
        raise KeyError("after the commit")

    ends_last = [Idempotent(caller=caller_of), Depends(break_off, scope="function")]

    @shop.app.post("/orders", dependencies=ends_last)
    async def order(session: DbSession) -> int:
        shop.runs += 1
        await session.execute(INSERT, {"item": "tea"})
        return shop.runs

    async with shop.client() as client:
        assert (await client.post("/orders", headers=key())).status_code == 500
        again = await client.post("/orders", headers=key())
        assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (200, 1, "true")
        assert (shop.runs, await shop.orders()) == (1, 1)


async def test_a_duplicate_that_waits_in_vain_is_refused(shop: Shop) -> None:
    guard(shop, wait_seconds=0.05)
    async with shop.client() as client:
        first = asyncio.create_task(client.post("/orders", headers=key()))
        await shop.arrived.wait()
        assert (await client.post("/orders", headers=key())).status_code == 409
        shop.may_go.set()
        assert (await first).json() == 1


async def test_a_request_on_valkey_takes_one_round_trip_before_and_one_after(
    sqlite_db: AsyncDatabase, valkey_url: str
) -> None:
    store = RedisIdempotencyStore(valkey_url)
    shop = Shop(sqlite_db, store)
    shop.may_go.set()
    guard(shop)

    async def commands() -> dict[str, int]:
        async with connect(valkey_url) as observer:
            counted = await observer.info("commandstats")
        names = ("cmdstat_eval", "cmdstat_evalsha", "cmdstat_script|load")
        return {name: counted[name]["calls"] for name in names if name in counted}

    async with shop.client() as client:
        await client.post("/orders", headers=key("warm"))  # the server learns the scripts
        async with connect(valkey_url) as observer:
            await observer.config_resetstat()
        await client.post("/orders", headers=key())
        assert await commands() == {"cmdstat_evalsha": 2}
        await client.post("/orders", headers=key())
        assert await commands() == {"cmdstat_evalsha": 3}
    assert shop.runs == 2
    await store.close()


async def test_outcomes_are_counted(shop: Shop) -> None:
    shop.may_go.set()
    guard(shop)
    async with shop.client() as client:
        await client.post("/orders", headers=key())
        await client.post("/orders", headers=key())
        await client.post("/orders", headers=key(), content=b"other")
        counted = (await client.get("/metrics")).text
    for outcome in ("first", "replayed", "reused"):
        assert f'idempotency_requests_total{{outcome="{outcome}"}} 1.0' in counted
    assert 'outcome="lost"' not in counted  # what the commit has kept is not kept once more
