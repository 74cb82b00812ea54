"""What every job queue does, whatever keeps its jobs: enqueueing and claiming."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from svc_infra.errors import ValidationError
from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.job import JobState
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, Backend, claim, claim_one, kept

MIB = 1024 * 1024


# ---------------------------------------------------------------------------------------------------------- enqueueing


async def test_a_job_is_kept_as_it_was_enqueued(queue: AnyQueue, clock: FakeClock) -> None:
    payload = {"text": "naïve \u0000 ✓", "big": 2**53 + 1, "list": [1, 2.5, None, True], "nested": {"b": 1, "a": {}}}
    job_id = await queue.enqueue(
        "mail.send", payload, queue="mail", priority=7, max_attempts=9, backoff_seconds=1.5, timeout_seconds=30
    )
    job = await kept(queue, job_id)
    assert (job.id, job.name, job.queue, job.state) == (job_id, "mail.send", "mail", JobState.READY)
    assert job.payload == payload
    assert list(job.payload["nested"]) == ["b", "a"]
    assert (job.priority, job.max_attempts, job.backoff_seconds, job.timeout_seconds) == (7, 9, 1.5, 30.0)
    assert (job.attempts, job.crashes, job.token, job.lease_expires_at) == (0, 0, None, None)
    assert job.created_at == job.available_at == clock.now()


async def test_a_job_without_options_gets_the_defaults(queue: AnyQueue) -> None:
    job = await kept(queue, await queue.enqueue("a"))
    assert (job.payload, job.queue, job.priority, job.unique_key) == ({}, "default", 0, None)
    assert (job.max_attempts, job.backoff_seconds, job.timeout_seconds) == (5, 5.0, None)
    assert (job.last_error, job.result, job.started_at, job.finished_at) == (None, None, None, None)
    assert (job.progress_done, job.progress_total, job.context) == (0, 0, {})


async def test_an_id_is_a_uuid_7_unless_it_is_chosen(queue: AnyQueue) -> None:
    assert UUID(await queue.enqueue("a")).version == 7
    assert await queue.enqueue("a", job_id="import-42") == "import-42"
    assert (await kept(queue, "import-42")).id == "import-42"


async def test_the_same_id_again_changes_nothing(queue: AnyQueue) -> None:
    await queue.enqueue("a", {"n": 1}, job_id="one")
    await claim_one(queue)
    assert await queue.enqueue("b", {"n": 2}, job_id="one", queue="other") == "one"
    job = await kept(queue, "one")
    assert (job.name, job.payload, job.state) == ("a", {"n": 1}, JobState.RUNNING)
    assert await claim(queue, queues=["default", "other"]) == []


async def test_a_unique_key_gives_the_job_that_holds_it(queue: AnyQueue) -> None:
    first = await queue.enqueue("a", {"n": 1}, unique_key="invoice_7_/_März")
    again = await queue.enqueue("a", {"n": 2}, unique_key="invoice_7_/_März", queue="other")
    other = await queue.enqueue("a", {"n": 3}, unique_key="invoice_8")
    assert again == first != other
    assert (await kept(queue, first)).payload == {"n": 1}
    assert len(await queue.list()) == 2


async def test_a_unique_key_is_held_until_its_job_is_purged(queue: AnyQueue) -> None:
    first = await queue.enqueue("a", unique_key="key")
    job = await claim_one(queue)
    assert await queue.enqueue("a", unique_key="key") == first
    await queue.ack(job)
    assert await queue.enqueue("a", unique_key="key") == first
    await queue.purge(older_than_seconds=0)
    assert await queue.enqueue("a", unique_key="key") != first


async def test_one_unique_key_enqueued_from_many_sides_at_once_makes_one_job(backend: Backend) -> None:
    queues = [backend.make() for _ in range(5)]
    ids = await asyncio.gather(*(queues[n % 5].enqueue("a", {"n": n}, unique_key="key") for n in range(25)))
    assert len(set(ids)) == 1
    assert len(await backend.queue.list()) == 1


async def test_a_job_carries_the_context_of_whoever_enqueued_it(queue: AnyQueue) -> None:
    token = enter(Context(request_id="r-1", trace_id="t-1", span_id="s-1", tenant_id="acme", principal_id="p-1"))
    try:
        await queue.enqueue("a")
    finally:
        leave(token)
    job = await claim_one(queue)
    assert job.context == {"request_id": "r-1", "trace_id": "t-1", "tenant_id": "acme", "principal_id": "p-1"}


async def test_a_payload_of_one_mebibyte_is_kept_and_a_byte_more_is_refused(queue: AnyQueue) -> None:
    largest = {"data": "x" * (MIB - len('{"data":""}'))}
    job_id = await queue.enqueue("a", largest)
    assert (await kept(queue, job_id)).payload == largest
    with pytest.raises(ValidationError, match="1,048,577 bytes long; the limit is 1,048,576"):
        await queue.enqueue("a", {"data": largest["data"] + "x"})


async def test_names_may_hold_any_printable_character(queue: AnyQueue) -> None:
    odd = "büro/{x}:*[a]?'\";--%s$1\\"
    job_id = await queue.enqueue(odd, queue=odd, unique_key=odd, job_id=odd)
    assert job_id == odd
    job = await claim_one(queue, queues=[odd])
    assert (job.id, job.name, job.queue, job.unique_key) == (odd, odd, odd, odd)
    await queue.ack(job)
    assert [job.id for job in await queue.list(queue=odd)] == [odd]


REFUSED: list[dict[str, Any]] = [
    {"name": ""},
    {"name": "two words"},
    {"name": "line\nbreak"},
    {"name": "x" * 201},
    {"name": None},
    {"queue": ""},
    {"queue": "nul\0"},
    {"job_id": ""},
    {"unique_key": "\ud800"},
    {"payload": [1]},
    {"payload": {"when": object()}},
    {"payload": {1: "the key is no text"}},
    {"payload": {"number": 2**70}},
    {"payload": {"text": "\ud800"}},
    {"payload": {"$unreadable": 1}},
    {"delay_seconds": -1},
    {"delay_seconds": float("nan")},
    {"delay_seconds": 400 * 86400.0},
    {"priority": 1001},
    {"priority": 0.5},
    {"max_attempts": 0},
    {"max_attempts": True},
    {"backoff_seconds": -1},
    {"timeout_seconds": 0},
]


async def test_what_cannot_be_kept_is_refused_and_leaves_nothing_behind(queue: AnyQueue) -> None:
    accepted = []
    for wrong in REFUSED:
        try:
            accepted.append((await queue.enqueue(**{"name": "a", **wrong}), wrong))
        except ValidationError:
            continue
    assert accepted == []
    assert await queue.list() == []


# ------------------------------------------------------------------------------------------------- order, delay, queues


async def test_the_highest_priority_comes_first_and_then_the_oldest(queue: AnyQueue, clock: FakeClock) -> None:
    for name, priority in [("b", 0), ("c", 0), ("a", 5), ("d", -5)]:
        await queue.enqueue(name, priority=priority)
        clock.advance(0.001)
    assert [job.name for job in await claim(queue, limit=10)] == ["a", "b", "c", "d"]


async def test_jobs_of_one_instant_come_in_the_order_of_their_ids(queue: AnyQueue) -> None:
    for job_id in ("2", "10", "1", "ä", "z"):
        await queue.enqueue("a", job_id=job_id)
    assert [(await claim_one(queue)).id for _ in range(5)] == ["1", "10", "2", "z", "ä"]


async def test_a_delayed_job_is_not_given_out_before_its_time(queue: AnyQueue, clock: FakeClock) -> None:
    job_id = await queue.enqueue("a", delay_seconds=60.25)
    assert (await kept(queue, job_id)).state is JobState.READY
    clock.advance(60.249)
    assert await claim(queue) == []
    clock.advance(0.001)
    assert [job.id for job in await claim(queue)] == [job_id]


async def test_a_delayed_job_takes_its_place_when_it_becomes_due(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("second", delay_seconds=10)
    await queue.enqueue("urgent", delay_seconds=20, priority=1)
    await queue.enqueue("first")
    clock.advance(15)
    await queue.enqueue("third")
    clock.advance(15)
    await queue.enqueue("fourth")
    names = [job.name for job in await claim(queue, limit=10)]
    assert names == ["urgent", "first", "second", "third", "fourth"]


async def test_jobs_that_wait_for_their_time_hide_nobody(queue: AnyQueue) -> None:
    for _ in range(3):
        await queue.enqueue("later", delay_seconds=5, priority=9)
    await queue.enqueue("now")
    assert [job.name for job in await claim(queue, limit=2)] == ["now"]


async def test_only_the_named_queues_are_served(queue: AnyQueue) -> None:
    await queue.enqueue("a", queue="mail")
    assert await claim(queue) == []
    assert await claim(queue, queues=["mai", "mail2"]) == []
    assert [job.queue for job in await claim(queue, queues=["mail"])] == ["mail"]


async def test_priority_counts_across_queues_and_age_next(queue: AnyQueue, clock: FakeClock) -> None:
    for name, on, priority in [("c", "x", 0), ("d", "y", 0), ("b", "x", 1), ("a", "y", 2), ("e", "z", 0)]:
        await queue.enqueue(name, queue=on, priority=priority)
        clock.advance(1)
    assert [job.name for job in await claim(queue, limit=3, queues=["x", "y", "z"])] == ["a", "b", "c"]
    assert [job.name for job in await claim(queue, limit=3, queues=["z", "y", "x", "x"])] == ["d", "e"]


# ------------------------------------------------------------------------------------------------------------ claiming


async def test_a_claim_takes_at_most_its_limit(queue: AnyQueue) -> None:
    for _ in range(5):
        await queue.enqueue("a")
    assert [len(await claim(queue, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_claimed_job_tells_who_holds_it_and_until_when(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    clock.advance(3)
    (job,) = await queue.reserve(worker_id="host:1", lease_seconds=7.5)
    assert (job.state, job.attempts, job.worker_id) == (JobState.RUNNING, 1, "host:1")
    assert job.started_at == clock.now()
    assert job.lease_expires_at is not None
    assert (job.lease_expires_at - clock.now()).total_seconds() == 7.5
    assert await kept(queue, job.id) == job


async def test_a_running_job_is_not_given_out_again(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    await claim_one(queue, lease_seconds=10)
    clock.advance(9.999)
    assert await claim(queue) == []


async def test_every_claim_has_a_token_of_its_own_that_cannot_be_guessed(queue: AnyQueue, clock: FakeClock) -> None:
    for _ in range(3):
        await queue.enqueue("a")
    tokens = [job.token for job in await claim(queue, limit=3)]
    clock.advance(20)
    tokens += [job.token for job in await claim(queue, limit=3)]
    assert len(set(tokens)) == 6
    assert len({token[:32] for token in tokens if token}) >= 2
    assert all(token and len(token) >= 32 for token in tokens)


async def test_twenty_workers_at_once_never_get_the_same_job(backend: Backend) -> None:
    for _ in range(50):
        await backend.queue.enqueue("a")
    workers = [backend.make(backend.clock) for _ in range(20)]

    async def work(queue: AnyQueue, name: str) -> list[str]:
        mine: list[str] = []
        while jobs := await queue.reserve(worker_id=name, limit=3):
            mine += [job.id for job in jobs]
            await asyncio.gather(*(queue.ack(job) for job in jobs))
        return mine

    taken = await asyncio.gather(*(work(queue, f"w{n}") for n, queue in enumerate(workers)))
    ids = [job_id for mine in taken for job_id in mine]
    while jobs := await claim(backend.queue, limit=10):  # a worker may stop while others still look at the last ones
        ids += [job.id for job in jobs]
    assert len(ids) == len(set(ids)) == 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1.5},
        {"lease_seconds": 0},
        {"lease_seconds": float("inf")},
        {"queues": []},
        {"queues": "default"},
        {"queues": [f"q{n}" for n in range(101)]},
        {"worker_id": ""},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
async def test_a_senseless_claim_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        await InMemoryJobQueue().reserve(**{"worker_id": "w", **wrong})
