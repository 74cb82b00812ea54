"""What every store of idempotency keys promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.idempotency import (
    Answer,
    Claim,
    IdempotencyStore,
    RedisIdempotencyStore,
    Refusal,
    SqlIdempotencyStore,
)

SHORT_SECONDS = 0.05
WAIT_SECONDS = 10.0
ANSWER = Answer(
    201, ((b"content-type", b"text/plain; charset=latin-1"), (b"x-a", b"\xe9"), (b"x-a", b"2")), b"\x00\xff"
)
KEY, PRINT = "k" * 64, "f" * 64

Make = Callable[[float, float], IdempotencyStore]


@dataclass
class Backend:
    """A backend, and how to make stores over the same keys with other times."""

    name: str
    make: Make


@pytest.fixture(params=["sqlite", "postgres", "valkey"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each backend in turn."""
    url = request.getfixturevalue("valkey_url" if request.param == "valkey" else f"migrated_{request.param}_url")
    made: list[IdempotencyStore] = []
    if request.param == "valkey":

        def make(lease_seconds: float, ttl_seconds: float) -> IdempotencyStore:
            made.append(RedisIdempotencyStore(url, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds))
            return made[-1]

        yield Backend(request.param, make)
        for store in made:
            await store.close()
        return
    db = AsyncDatabase(url)
    yield Backend(request.param, lambda lease, ttl: SqlIdempotencyStore(db, lease_seconds=lease, ttl_seconds=ttl))
    await db.dispose()


@pytest.fixture
def store(backend: Backend) -> IdempotencyStore:
    """A store whose leases outlast the test."""
    return backend.make(60, 3600)


async def claim(store: IdempotencyStore, key: str = KEY, fingerprint: str = PRINT) -> Claim:
    outcome = await store.claim(key, fingerprint)
    assert isinstance(outcome, Claim), outcome
    return outcome


async def claim_when_free(store: IdempotencyStore, fingerprint: str = PRINT) -> Claim:
    async with asyncio.timeout(WAIT_SECONDS):
        while not isinstance(outcome := await store.claim(KEY, fingerprint), Claim):
            await asyncio.sleep(0.01)
    return outcome


async def test_a_new_key_is_claimed_once(store: IdempotencyStore) -> None:
    first = await claim(store)
    assert first.key == KEY
    assert await store.claim(KEY, PRINT) is Refusal.IN_PROGRESS
    assert (await claim(store, key="other")).token != first.token


async def test_of_many_claims_at_once_one_is_given(store: IdempotencyStore) -> None:
    outcomes = await asyncio.gather(*(store.claim(KEY, PRINT) for _ in range(20)))
    assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 1
    assert outcomes.count(Refusal.IN_PROGRESS) == 19


async def test_a_finished_key_has_its_answer_byte_for_byte(store: IdempotencyStore) -> None:
    assert await store.finish(await claim(store), ANSWER)
    assert await store.claim(KEY, PRINT) == ANSWER
    assert await store.claim(KEY, PRINT) == ANSWER


async def test_an_empty_answer_is_an_answer(store: IdempotencyStore) -> None:
    empty = Answer(204, (), b"")
    assert await store.finish(await claim(store), empty)
    assert await store.claim(KEY, PRINT) == empty


async def test_another_request_never_gets_the_key(store: IdempotencyStore) -> None:
    held = await claim(store)
    assert await store.claim(KEY, "other") is Refusal.REUSED
    await store.finish(held, ANSWER)
    assert await store.claim(KEY, "other") is Refusal.REUSED


async def test_a_released_key_is_new(store: IdempotencyStore) -> None:
    assert await store.release(await claim(store))
    await claim(store, fingerprint="other")


async def test_a_key_whose_lease_has_ended_is_taken_over_by_the_same_request_only(backend: Backend) -> None:
    store = backend.make(SHORT_SECONDS, 3600)
    first = await claim(store)
    second = await claim_when_free(store)
    assert second.token != first.token
    assert await store.claim(KEY, "other") is Refusal.REUSED


async def test_a_holder_that_lost_its_key_changes_nothing(backend: Backend) -> None:
    stale = await claim(backend.make(SHORT_SECONDS, 3600))
    store = backend.make(60, 3600)
    newest = await claim_when_free(store)
    assert not await store.finish(stale, Answer(200, (), b"stale"))
    assert not await store.release(stale)
    assert await store.claim(KEY, PRINT) is Refusal.IN_PROGRESS
    assert await store.finish(newest, ANSWER)
    assert not await store.finish(stale, Answer(200, (), b"stale"))
    assert not await store.release(stale)
    assert await store.claim(KEY, PRINT) == ANSWER


async def test_a_holder_that_nobody_replaced_may_finish_late(backend: Backend) -> None:
    late = await claim(backend.make(0.001, 3600))  # over before the answer is here
    store = backend.make(60, 3600)
    assert await store.finish(late, ANSWER)
    assert await store.claim(KEY, PRINT) == ANSWER


async def test_a_key_is_finished_once(store: IdempotencyStore) -> None:
    held = await claim(store)
    assert await store.finish(held, ANSWER)
    assert not await store.finish(held, Answer(200, (), b"twice"))
    assert not await store.release(held)
    assert await store.claim(KEY, PRINT) == ANSWER


async def test_an_answer_is_forgotten_in_time_and_the_key_is_new(backend: Backend) -> None:
    store = backend.make(SHORT_SECONDS, SHORT_SECONDS)
    held = await claim(store)
    assert await store.finish(held, ANSWER)
    again = await claim_when_free(store, "other")
    assert await store.finish(again, ANSWER)


async def test_the_store_answers(store: IdempotencyStore) -> None:
    await store.ping()


@pytest.mark.parametrize(("lease", "ttl"), [(0, 1), (2, 1), (-1, 1)])
async def test_a_lease_fits_into_the_life_of_a_key(backend: Backend, lease: float, ttl: float) -> None:
    with pytest.raises(ConfigurationError, match="IDEMPOTENCY_LEASE_SECONDS"):
        backend.make(lease, ttl)
