"""What the SQL store does beyond the port: units of work, and the purge."""

from __future__ import annotations

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.idempotency import Answer, Claim, Refusal, SqlIdempotencyStore
from svc_infra.testing.clock import FakeClock

ANSWER = Answer(200, (), b"done")


async def claim(store: SqlIdempotencyStore, key: str = "k") -> Claim:
    outcome = await store.claim(key, "f")
    assert isinstance(outcome, Claim)
    return outcome


async def test_purging_deletes_what_is_forgotten_and_nothing_else(db: AsyncDatabase) -> None:
    clock = FakeClock()
    store = SqlIdempotencyStore(db, lease_seconds=10, ttl_seconds=100, clock=clock)
    for number in range(5):
        await claim(store, f"old {number}")
    clock.advance(50)
    held = await claim(store)
    await store.finish(held, ANSWER)
    assert await store.purge(limit=2) == 0
    clock.advance(50)
    assert [await store.purge(limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert await store.claim("k", "f") == ANSWER


async def test_an_answer_is_kept_for_its_whole_time_after_a_long_handler(db: AsyncDatabase) -> None:
    clock = FakeClock()
    store = SqlIdempotencyStore(db, lease_seconds=10, ttl_seconds=100, clock=clock)
    held = await claim(store)
    clock.advance(90)
    assert await store.finish(held, ANSWER)
    clock.advance(90)
    assert await store.claim("k", "f") == ANSWER
    clock.advance(10)
    await claim(store)


@pytest.mark.parametrize("ending", ["finish", "release"])
async def test_the_end_of_a_claim_is_part_of_the_unit_of_work(db: AsyncDatabase, ending: str) -> None:
    store = SqlIdempotencyStore(db)
    held = await claim(store)

    async def end(fails: bool) -> None:
        async with db.session() as session:
            assert store.joins(session)
            if ending == "finish":
                assert await store.finish(held, ANSWER, session=session)
            else:
                assert await store.release(held, session=session)
            if fails:
                raise LookupError

    with pytest.raises(LookupError):
        await end(fails=True)
    assert await store.claim("k", "f") is Refusal.IN_PROGRESS
    await end(fails=False)
    outcome = await store.claim("k", "f")
    assert outcome == ANSWER if ending == "finish" else isinstance(outcome, Claim)


async def test_another_databases_unit_of_work_is_not_joined(db: AsyncDatabase) -> None:
    other = AsyncDatabase("sqlite://")
    async with other.session() as session:
        assert not SqlIdempotencyStore(db).joins(session)
    assert not SqlIdempotencyStore(db).joins(None)
    await other.dispose()
