"""What every job queue does, whatever keeps its jobs: unique jobs, limits, pauses and times."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from svc_infra.errors import ValidationError
from svc_infra.jobs.job import JobRequest, JobState, Limit, Unique
from svc_infra.jobs.queue import Completion
from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, Backend, claim, claim_one, enqueue_for, kept, names

# --------------------------------------------------------------------------------------------------------------- unique


async def test_a_unique_key_is_free_again_after_its_window(queue: AnyQueue, clock: FakeClock) -> None:
    unique = Unique("key", window_seconds=60)
    first = await queue.enqueue("a", unique=unique)
    clock.advance(59)
    assert await queue.enqueue("a", unique=unique) == first
    clock.advance(1)
    second = await queue.enqueue("a", unique=unique)
    assert second != first
    assert await queue.enqueue("a", unique=unique) == second
    assert (await kept(queue, first)).unique_key is None


async def test_a_unique_key_counts_only_in_its_states(queue: AnyQueue) -> None:
    unique = Unique("key", states=frozenset({JobState.READY, JobState.RUNNING}))
    first = await queue.enqueue("a", unique=unique)
    job = await claim_one(queue)
    assert await queue.enqueue("a", unique=unique) == first
    await queue.ack(job)
    second = await queue.enqueue("a", unique=unique)
    assert second != first
    assert {job.id for job in await queue.list()} == {first, second}


async def test_replacing_gives_a_waiting_job_new_contents_and_keeps_its_turn(queue: AnyQueue, clock: FakeClock) -> None:
    first = await queue.enqueue("a", {"n": 1}, unique_key="key")
    clock.advance(5)
    await queue.enqueue("between")
    again = await queue.enqueue(
        "b", {"n": 2}, queue="other", max_attempts=9, unique=Unique("key", on_conflict="replace")
    )
    job = await kept(queue, first)
    assert (again, job.name, job.payload, job.queue, job.max_attempts) == (first, "b", {"n": 2}, "other", 9)
    assert [job.name for job in await claim(queue, limit=5, queues=["default", "other"])] == ["b", "between"]


async def test_a_job_that_is_replaced_begins_anew(queue: AnyQueue) -> None:
    first = await queue.enqueue("a", unique_key="key")
    job = await claim_one(queue)
    await queue.progress(job, done=1, total=2)
    await queue.fail(job, error="broken", delay_seconds=0.0, fingerprint="f")
    await queue.enqueue("a", max_attempts=1, unique=Unique("key", on_conflict="replace"))
    job = await kept(queue, first)
    assert (job.attempts, job.last_error, job.fingerprint, job.started_at) == (0, None, "", None)
    assert (job.worker_id, job.progress_done, job.progress_total) == (None, 0, 0)


async def test_replacing_can_raise_the_priority(queue: AnyQueue) -> None:
    await queue.enqueue("a", unique_key="key")
    await queue.enqueue("other")
    await queue.enqueue("a", priority=5, unique=Unique("key", on_conflict="replace"))
    assert await names(queue, 5) == ["a", "other"]


@pytest.mark.parametrize("mode", ["replace", "debounce"])
async def test_a_job_that_runs_is_neither_replaced_nor_debounced(mode: Any, queue: AnyQueue) -> None:
    first = await queue.enqueue("a", {"n": 1}, unique_key="key")
    running = await claim_one(queue)
    assert await queue.enqueue("a", {"n": 2}, unique=Unique("key", on_conflict=mode)) == first
    assert await kept(queue, first) == running
    assert await claim(queue) == []


async def test_debouncing_starts_the_wait_anew(queue: AnyQueue, clock: FakeClock) -> None:
    unique = Unique("key", on_conflict="debounce")
    for number in range(3):
        await queue.enqueue("a", {"n": number}, delay_seconds=10, unique=unique)
        clock.advance(9)
        assert await claim(queue) == []
    clock.advance(1)
    assert (await claim_one(queue)).payload == {"n": 2}
    assert len(await queue.list()) == 1


async def test_unique_jobs_of_one_batch_are_one_job(queue: AnyQueue) -> None:
    requests = [JobRequest(name="a", payload={"n": n}, unique_key="key") for n in range(3)]
    ids = await queue.enqueue_many([*requests, JobRequest(name="b")])
    assert len(set(ids)) == 2
    assert sorted(job.name for job in await claim(queue, limit=9)) == ["a", "b"]


async def test_of_a_batch_the_first_job_takes_the_key_whatever_the_others_ask_for(queue: AnyQueue) -> None:
    windowed, plain = Unique("key", window_seconds=60), Unique("key")
    requests = [JobRequest(name="a", job_id=str(n), unique=unique) for n, unique in enumerate([windowed, plain, plain])]
    assert await queue.enqueue_many(requests) == ["0", "0", "0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"unique": Unique("two words")},
        {"unique": Unique("k", window_seconds=0)},
        {"unique": Unique("k", states=frozenset())},
        {"unique": Unique("k", on_conflict="merge")},  # type: ignore[arg-type]
        {"unique": Unique("k"), "unique_key": "k"},
        {"limit": Limit("k")},
        {"limit": Limit("k", concurrency=0)},
        {"limit": Limit("k", rate=1, period_seconds=0)},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"at": datetime.fromisoformat("2026-01-01T00:00:00+00:00"), "delay_seconds": 1.0},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
async def test_senseless_terms_are_refused(wrong: dict[str, Any], queue: AnyQueue) -> None:
    with pytest.raises(ValidationError):
        await queue.enqueue("a", **wrong)
    assert await queue.list() == []


# --------------------------------------------------------------------------------------------------------------- limits


async def test_a_limit_lets_only_so_many_run_at_once(queue: AnyQueue) -> None:
    for _ in range(5):
        await queue.enqueue("a", limit=Limit("api", concurrency=2))
    running = await claim(queue, limit=5)
    assert len(running) == 2
    assert await claim(queue, limit=5) == []
    await queue.ack(running[0])
    assert len(await claim(queue, limit=5)) == 1


async def test_a_full_limit_holds_nobody_else_up(queue: AnyQueue) -> None:
    for _ in range(5):
        await queue.enqueue("limited", priority=9, limit=Limit("api", concurrency=1))
    await queue.enqueue("free")
    await queue.enqueue("other", limit=Limit("other", concurrency=1))
    assert sorted(await names(queue, 3)) == ["free", "limited", "other"]


async def test_limited_jobs_keep_their_place_among_the_others(queue: AnyQueue, clock: FakeClock) -> None:
    for name, limit in [("1", None), ("2", Limit("api", concurrency=9)), ("3", None), ("4", Limit("b", concurrency=9))]:
        await queue.enqueue(name, limit=limit)
        clock.advance(1)
    assert await names(queue, 2) == ["1", "2"]
    assert await names(queue, 2) == ["3", "4"]


async def test_a_limit_spans_queues(queue: AnyQueue) -> None:
    for name in ("x", "y"):
        await queue.enqueue("a", queue=name, limit=Limit("api", concurrency=1))
    assert len(await claim(queue, limit=5, queues=["x"])) == 1
    assert await claim(queue, limit=5, queues=["y"]) == []


async def test_tenants_whose_limits_are_full_hide_no_other(queue: AnyQueue) -> None:
    for tenant in ("a", "b", "c"):
        await enqueue_for(queue, tenant, 2, limit=Limit(tenant, concurrency=1))
    assert len(await claim(queue, limit=9)) == 3
    await enqueue_for(queue, "d", 2)
    assert await names(queue, 1) == ["d"]
    assert await names(queue, 2) == ["d"]


@pytest.mark.parametrize("end", ["fail", "release", "give up", "lease"])
async def test_whatever_ends_an_attempt_makes_room_under_its_limit(end: str, queue: AnyQueue, clock: FakeClock) -> None:
    for _ in range(2):
        await queue.enqueue("a", limit=Limit("api", concurrency=1))
    job = await claim_one(queue, lease_seconds=5)
    if end == "lease":
        clock.advance(5)
    elif end == "release":
        await queue.release(job, delay_seconds=60)
    else:
        await queue.fail(job, error="broken", delay_seconds=60, dead=end == "give up")
    assert len(await claim(queue, limit=5)) == 1


async def test_a_rate_allows_a_burst_and_then_one_at_a_time(queue: AnyQueue, clock: FakeClock) -> None:
    for _ in range(9):
        await queue.enqueue("a", limit=Limit("api", rate=3, period_seconds=30))
    await queue.ack_many([Completion(job) for job in await claim(queue, limit=9)])
    assert (await queue.stats()).counts[JobState.SUCCEEDED] == 3
    clock.advance(9.9)
    assert await claim(queue, limit=9) == []
    clock.advance(0.1)
    assert len(await claim(queue, limit=9)) == 1
    clock.advance(1000)
    assert len(await claim(queue, limit=9)) == 3


async def test_a_queue_can_be_limited_as_a_whole(queue: AnyQueue) -> None:
    await queue.configure_queue("default", concurrency=2)
    await queue.enqueue_many([JobRequest(name="a") for _ in range(5)])
    await queue.enqueue("b", queue="other")
    running = await claim(queue, limit=9, queues=["default", "other"])
    assert Counter(job.queue for job in running) == {"default": 2, "other": 1}
    assert await claim(queue, limit=9) == []
    await queue.configure_queue("default")
    assert len(await claim(queue, limit=9)) == 3


async def test_a_queue_can_have_a_rate(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.configure_queue("default", rate=2, period_seconds=10)
    await queue.enqueue_many([JobRequest(name="a") for _ in range(5)])
    assert len(await claim(queue, limit=9)) == 2
    clock.advance(5)
    assert len(await claim(queue, limit=9)) == 1


async def test_many_workers_at_once_never_exceed_a_limit(backend: Backend) -> None:
    await backend.queue.enqueue_many([JobRequest(name="a", limit=Limit("api", concurrency=3)) for _ in range(20)])
    workers = [backend.make(backend.clock) for _ in range(6)]
    taken = await asyncio.gather(*(queue.reserve(worker_id="w", limit=2) for queue in workers))
    assert sum(map(len, taken)) <= 3
    assert sum(map(len, taken)) + len(await claim(backend.queue, limit=9)) == 3


# --------------------------------------------------------------------------------------------------------------- pauses


async def test_a_paused_queue_gives_nothing_out_until_it_is_resumed(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    await queue.enqueue("b", queue="other")
    await queue.pause("default")
    assert await names(queue, 5, queues=["default", "other"]) == ["b"]
    await queue.enqueue("c")
    assert await claim(queue) == []
    await queue.resume("default")
    assert await names(queue, 5) == ["a", "c"]


async def test_jobs_that_run_go_on_while_their_queue_is_paused(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.pause("default")
    assert (await queue.heartbeat([job])).held == {job.id}
    await queue.ack(job)


async def test_every_queue_object_sees_a_pause_at_once(backend: Backend) -> None:
    one, other = backend.make(backend.clock), backend.make(backend.clock)
    await one.enqueue_many([JobRequest(name="a") for _ in range(3)])
    assert len(await claim(other)) == 1
    await one.pause("default")
    assert await claim(other) == []
    await one.resume("default")
    assert len(await claim(one, limit=5)) == 2


async def test_resuming_wakes_a_waiting_worker(backend: Backend) -> None:
    queue = backend.make()
    await queue.pause("default")
    await queue.enqueue("a")
    assert await claim(queue) == []
    await queue.wait(0.01)
    waiting = asyncio.create_task(queue.wait(30))
    await asyncio.sleep(0)
    await queue.resume("default")
    await asyncio.wait_for(waiting, timeout=5)


async def test_queues_tell_what_is_in_them_and_how_they_are_configured(queue: AnyQueue, clock: FakeClock) -> None:
    assert await queue.queues() == []
    await queue.configure_queue("mail", concurrency=5, rate=9, period_seconds=30, weights={"acme": 2.0})
    await queue.pause("mail")
    await queue.enqueue("a", queue="mail")
    await queue.enqueue("a", delay_seconds=60)
    clock.advance(5)
    default, mail = await queue.queues()
    assert (default.name, default.ready, default.running, default.oldest_due_age_seconds) == ("default", 1, 0, 0.0)
    assert (mail.name, mail.ready, mail.paused, mail.concurrency, mail.rate) == ("mail", 1, True, 5, 9)
    assert (mail.period_seconds, mail.weights, mail.oldest_due_age_seconds) == (30.0, {"acme": 2.0}, 5.0)
    await queue.resume("mail")
    await queue.configure_queue("mail")
    assert {info.name: (info.paused, info.rate) for info in await queue.queues()}["mail"] == (False, None)


async def test_configuring_a_paused_queue_leaves_it_paused(queue: AnyQueue) -> None:
    await queue.pause("default")
    await queue.configure_queue("default", concurrency=1)
    await queue.enqueue("a")
    assert await claim(queue) == []


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"rate": -1}, {"weights": {"a": 0.0}}, {"period_seconds": 0.0}])
async def test_a_senseless_configuration_is_refused(wrong: dict[str, Any], queue: AnyQueue) -> None:
    with pytest.raises(ValidationError):
        await queue.configure_queue("default", **wrong)
    assert await queue.queues() == []


# ---------------------------------------------------------------------------------------------------------------- times


async def test_a_job_can_wait_for_a_time(queue: AnyQueue, clock: FakeClock) -> None:
    at = (clock.now() + timedelta(seconds=90)).astimezone()
    job_id = await queue.enqueue("a", at=at)
    assert (await kept(queue, job_id)).available_at == at
    clock.advance(89.9)
    assert await claim(queue) == []
    clock.advance(0.1)
    assert (await claim_one(queue)).id == job_id


async def test_a_time_that_is_past_means_now(queue: AnyQueue, clock: FakeClock) -> None:
    job_id = await queue.enqueue("a", at=clock.now() - timedelta(days=1))
    assert (await kept(queue, job_id)).available_at == clock.now()
    assert (await claim_one(queue)).id == job_id


async def test_a_clock_that_goes_backwards_loses_and_doubles_nothing(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("before")
    held = await claim_one(queue, lease_seconds=30)
    clock.advance(-3600)
    later = await queue.enqueue("after")
    assert [job.id for job in await claim(queue, limit=5)] == [later]
    assert (await queue.heartbeat([held], lease_seconds=30)).held == {held.id}
    clock.advance(30)
    again = await claim(queue, limit=5)
    assert {(job.name, job.crashes) for job in again} == {("before", 1), ("after", 1)}
