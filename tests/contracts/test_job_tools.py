"""What every job queue does, whatever keeps its jobs: many jobs at once, cancelling, the dead letter, bad input."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from svc_infra.errors import ConfigurationError, ConflictError, DeadlineExceededError, NotFoundError, ValidationError
from svc_infra.jobs.job import Job, JobRequest, JobState, Limit
from svc_infra.jobs.queue import Completion
from svc_infra.obs.context import Context, enter, leave
from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, Backend, claim, claim_one, kept

# --------------------------------------------------------------------------------------------------------- many at once


async def test_many_jobs_are_stored_at_once_in_the_order_of_the_requests(queue: AnyQueue) -> None:
    requests = [JobRequest(name="a", payload={"n": n}, priority=n % 3, delay_seconds=n % 2) for n in range(50)]
    ids = await queue.enqueue_many(requests)
    assert [(await kept(queue, job_id)).payload["n"] for job_id in ids] == list(range(50))
    assert len(await claim(queue, limit=99)) == 25


async def test_of_many_jobs_one_wrong_one_keeps_all_out(queue: AnyQueue) -> None:
    with pytest.raises(ValidationError):
        await queue.enqueue_many([JobRequest(name="a"), JobRequest(name="two words"), JobRequest(name="b")])
    assert await queue.list() == []


async def test_ids_that_are_kept_already_are_stored_once(queue: AnyQueue) -> None:
    await queue.enqueue("a", job_id="one")
    ids = await queue.enqueue_many([JobRequest(name="b", job_id=job_id) for job_id in ("one", "two", "two")])
    assert ids == ["one", "two", "two"]
    assert sorted(job.name for job in await queue.list()) == ["a", "b"]


async def test_many_jobs_of_a_unit_of_work_come_with_its_commit(backend: Backend) -> None:
    async with backend.session() as session:
        ids = await backend.queue.enqueue_many([JobRequest(name="a"), JobRequest(name="b")], session=session)
    await backend.settle()
    assert {job.id for job in await claim(backend.queue, limit=9)} == set(ids)


async def test_nothing_to_store_and_nothing_to_finish_is_nothing(queue: AnyQueue) -> None:
    assert await queue.enqueue_many([]) == []
    assert await queue.ack_many([]) == set()


async def test_more_jobs_than_the_limit_are_refused(queue: AnyQueue) -> None:
    with pytest.raises(ValidationError, match="10000"):
        await queue.enqueue_many([JobRequest(name="a")] * 10_001)


async def test_many_completions_keep_their_results(queue: AnyQueue) -> None:
    await queue.enqueue_many([JobRequest(name="a") for _ in range(20)])
    jobs = await claim(queue, limit=20)
    assert await queue.ack_many([Completion(job, {"n": n}) for n, job in enumerate(jobs)]) == set()
    assert [(await kept(queue, job.id)).result for job in jobs] == [{"n": n} for n in range(20)]


async def test_of_many_completions_the_stale_and_the_unstorable_are_named(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue_many([JobRequest(name="a") for _ in range(3)])
    stale, wrong, good = await claim(queue, limit=3)
    await queue.release(stale)
    refused = await queue.ack_many([Completion(stale), Completion(wrong, object()), Completion(good, 1)])
    assert refused == {stale.id, wrong.id}
    assert (await kept(queue, good.id)).result == 1
    assert (await kept(queue, wrong.id)).token == wrong.token
    assert (await kept(queue, stale.id)).state is JobState.READY


async def test_the_same_completion_twice_counts_once(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    assert await queue.ack_many([Completion(job, 1), Completion(job, 1)]) == set()
    assert await queue.ack_many([Completion(job, 2)]) == {job.id}


async def test_progress_can_be_part_of_a_unit_of_work_where_the_database_is_one(backend: Backend) -> None:
    await backend.queue.enqueue("a")
    job = await claim_one(backend.queue)
    if backend.name in ("memory", "valkey"):
        with pytest.raises(ConfigurationError, match="SqlJobQueue"):
            async with backend.session() as session:
                await backend.queue.progress(job, done=1, session=session)
        return

    async def report(*, fails: bool) -> None:
        async with backend.session() as session:
            await backend.queue.progress(job, done=1, session=session)
            if fails:
                raise LookupError

    with pytest.raises(LookupError):
        await report(fails=True)
    assert (await kept(backend.queue, job.id)).progress_done == 0
    await report(fails=False)
    assert (await kept(backend.queue, job.id)).progress_done == 1


# ----------------------------------------------------------------------------------------------------------- cancelling


async def test_cancelling_a_running_job_is_told_with_its_next_heartbeat(queue: AnyQueue) -> None:
    await queue.enqueue_many([JobRequest(name="a"), JobRequest(name="a")])
    one, other = await claim(queue, limit=2)
    await queue.cancel(one.id)
    beat = await queue.heartbeat([one, other])
    assert beat == (frozenset({one.id, other.id}), frozenset({one.id}))
    running = await kept(queue, one.id)
    assert (running.state, running.cancel_requested) == (JobState.RUNNING, True)
    await queue.cancel(one.id)


STEPS: dict[str, Any] = {
    "fail": lambda queue, job: queue.fail(job, error="broken", delay_seconds=0),
    "give up": lambda queue, job: queue.fail(job, error="broken", dead=True),
    "release": lambda queue, job: queue.release(job),
    "cancelled": lambda queue, job: queue.fail(job, error="stopped", cancelled=True),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancelled_job_does_not_come_back_by(step: str, queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.cancel(job.id)
    await STEPS[step](queue, job)
    ended = await kept(queue, job.id)
    assert (ended.state, ended.finished_at, ended.token) == (JobState.CANCELLED, clock.now(), None)
    assert await claim(queue) == []


async def test_a_cancelled_job_whose_worker_died_is_cancelled(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue, lease_seconds=5)
    await queue.cancel(job.id)
    clock.advance(5)
    assert await claim(queue) == []
    assert (await kept(queue, job.id)).state is JobState.CANCELLED


async def test_a_cancelled_job_that_succeeds_all_the_same_has_succeeded(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.cancel(job.id)
    await queue.ack(job, result=1)
    assert (await kept(queue, job.id)).state is JobState.SUCCEEDED


async def test_a_handler_can_end_its_own_job_as_cancelled(queue: AnyQueue) -> None:
    await queue.enqueue("a", max_attempts=1)
    job = await claim_one(queue)
    assert await queue.fail(job, error="not needed", cancelled=True) is JobState.CANCELLED
    assert (await kept(queue, job.id)).last_error == "not needed"


async def test_a_job_put_back_after_a_cancel_is_no_longer_cancelled(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job = await claim_one(queue)
    await queue.cancel(job.id)
    await queue.release(job)
    await queue.retry(job.id)
    again = await claim_one(queue)
    assert not again.cancel_requested
    assert (await queue.heartbeat([again])).cancelled == set()


# ------------------------------------------------------------------------------------------------------ the dead letter


async def dead(queue: AnyQueue, clock: FakeClock, *wanted: tuple[str, str, str]) -> list[str]:
    """Dead jobs by name, queue and fingerprint, each a second apart."""
    ids = []
    for name, on, fingerprint in wanted:
        ids.append(await queue.enqueue(name, queue=on))
        (job,) = await claim(queue, queues=[on])
        await queue.fail(job, error=f"{name} broke", fingerprint=fingerprint, dead=True)
        clock.advance(1)
    return ids


async def test_dead_jobs_are_found_by_their_fingerprint_name_and_queue(queue: AnyQueue, clock: FakeClock) -> None:
    a, b, c = await dead(queue, clock, ("a", "x", "f1"), ("b", "x", "f2"), ("a", "y", "f1"))
    assert [job.id for job in await queue.list(fingerprint="f1")] == [c, a]
    assert [job.id for job in await queue.list(name="a", queue="x")] == [a]
    assert [job.id for job in await queue.list(state=JobState.DEAD, name="b")] == [b]
    assert (await kept(queue, b)).fingerprint == "f2"
    assert await queue.list(fingerprint="f3") == []


async def test_jobs_are_found_by_their_tenant(queue: AnyQueue) -> None:
    token = enter(Context(tenant_id="acme"))
    job_id = await queue.enqueue("a")
    leave(token)
    await queue.enqueue("a")
    assert [job.id for job in await queue.list(tenant="acme")] == [job_id]


async def test_a_list_goes_on_before_a_job(queue: AnyQueue, clock: FakeClock) -> None:
    for number in range(5):
        await queue.enqueue("a", job_id=f"j{number}")
        clock.advance(number % 2)
    seen: list[str] = []
    while page := await queue.list(limit=2, before=seen[-1] if seen else None):
        seen += [job.id for job in page]
    assert seen == ["j4", "j3", "j2", "j1", "j0"]
    assert await queue.list(before="nobody") == []


async def test_dead_jobs_are_put_back_together_those_first_that_died_first(queue: AnyQueue, clock: FakeClock) -> None:
    a, b, c = await dead(queue, clock, ("a", "x", "f1"), ("b", "x", "f2"), ("c", "x", "f1"))
    assert await queue.retry_many(fingerprint="f1", limit=1) == 1
    assert (await kept(queue, a)).state is JobState.READY
    assert await queue.retry_many(queue="y") == 0
    assert await queue.retry_many(queue="x") == 2
    jobs = await claim(queue, limit=9, queues=["x"])
    assert {job.id for job in jobs} == {a, b, c}
    assert {job.attempts for job in jobs} == {1}


async def test_putting_back_can_be_spread_over_time(queue: AnyQueue, clock: FakeClock) -> None:
    await dead(queue, clock, *[("a", "default", "")] * 5)
    assert await queue.retry_many(per_second=0.5) == 5
    counts = []
    for _ in range(5):
        counts.append(len(await claim(queue, limit=9, lease_seconds=600)))
        clock.advance(2)
    assert counts == [1, 1, 1, 1, 1]


async def test_a_cancelled_job_is_not_put_back_with_the_dead(queue: AnyQueue) -> None:
    await queue.cancel(await queue.enqueue("a"))
    assert await queue.retry_many() == 0


async def test_a_dead_job_can_be_edited_and_replayed(queue: AnyQueue, clock: FakeClock) -> None:
    (job_id,) = await dead(queue, clock, ("a", "default", "f"))
    await queue.edit(job_id, {"fixed": True})
    await queue.retry(job_id)
    assert (await claim_one(queue)).payload == {"fixed": True}


async def test_a_waiting_job_can_be_edited_and_no_other(queue: AnyQueue) -> None:
    job_id = await queue.enqueue("a", {"n": 1}, delay_seconds=5)
    await queue.edit(job_id, {"n": 2})
    assert (await kept(queue, job_id)).payload == {"n": 2}
    await queue.enqueue("b")
    job = await claim_one(queue)
    with pytest.raises(ConflictError, match="running"):
        await queue.edit(job.id, {})
    await queue.ack(job)
    with pytest.raises(ConflictError, match="succeeded"):
        await queue.edit(job.id, {})
    with pytest.raises(NotFoundError):
        await queue.edit("nobody", {})
    with pytest.raises(ValidationError):
        await queue.edit(job_id, {"when": object()})


async def test_the_dead_letter_is_purged_only_when_told(queue: AnyQueue, clock: FakeClock) -> None:
    await dead(queue, clock, ("a", "default", ""), ("b", "default", ""))
    await queue.enqueue("done")
    await queue.ack(await claim_one(queue))
    assert await queue.purge(older_than_seconds=0, dead=True, limit=1) == 1
    assert sorted(job.name for job in await queue.list()) == ["b", "done"]
    assert await queue.purge(older_than_seconds=60, dead=True) == 0
    assert await queue.purge(older_than_seconds=0) == 1


async def test_a_job_that_crashes_leaves_its_last_facts(queue: AnyQueue, clock: FakeClock) -> None:
    job_id = await queue.enqueue("a", max_attempts=99)
    for number in range(3):
        await queue.reserve(worker_id=f"host:{number}", lease_seconds=5)
        clock.advance(5)
    assert await claim(queue) == []
    job = await kept(queue, job_id)
    assert (job.state, job.crashes, job.worker_id) == (JobState.DEAD, 3, "host:2")
    assert "Held by host:2, started at 2026-01-05 12:00:10" in str(job.last_error)


async def test_crashes_spend_no_attempts(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a", max_attempts=2)
    await claim_one(queue, lease_seconds=1)
    clock.advance(1)
    assert await queue.fail(await claim_one(queue), error="one", delay_seconds=0) is JobState.READY
    assert await queue.fail(await claim_one(queue), error="two", delay_seconds=0) is JobState.DEAD


# ---------------------------------------------------------------------------------------------------------- waiting for


async def test_a_finished_job_can_be_waited_for(backend: Backend) -> None:
    queue = backend.queue
    job_id = await queue.enqueue("a")
    waiting = asyncio.create_task(queue.wait_for(job_id, 30))
    await queue.ack(await claim_one(queue), result="done")
    job = await asyncio.wait_for(waiting, 5)
    assert (job.state, job.result) == (JobState.SUCCEEDED, "done")


async def test_waiting_for_a_job_ends_after_its_time_and_at_once_for_an_unknown_one(queue: AnyQueue) -> None:
    job_id = await queue.enqueue("a")
    with pytest.raises(DeadlineExceededError):
        await queue.wait_for(job_id, 0.05)
    with pytest.raises(NotFoundError):
        await queue.wait_for("nobody", 30)


# ------------------------------------------------------------------------------------------------------------ bad input


async def test_a_payload_of_ten_megabytes_is_refused_quickly(queue: AnyQueue) -> None:
    started = time.perf_counter()
    with pytest.raises(ValidationError, match="10,000,011 bytes long"):
        await queue.enqueue("a", {"data": "x" * 10_000_000})
    assert time.perf_counter() - started < 5
    assert await queue.list() == []


async def test_two_workers_with_one_id_do_not_share_attempts(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("a")
    (first,) = await queue.reserve(worker_id="twin", lease_seconds=5)
    assert await queue.reserve(worker_id="twin") == []
    clock.advance(5)
    (second,) = await queue.reserve(worker_id="twin")
    assert (await queue.heartbeat([first, second])).held == {second.id}
    assert await queue.ack_many([Completion(first)]) == {first.id}
    assert (await kept(queue, second.id)).token == second.token


async def test_odd_tenants_and_limit_keys_are_names_like_any_other(queue: AnyQueue) -> None:
    token = enter(Context(tenant_id="Ünï\t'co\": {x}"))
    await queue.enqueue("a", limit=Limit("k:{x}'\"\\", concurrency=1))
    leave(token)
    job = await claim_one(queue)
    assert (job.tenant, job.limit_key) == ("Ünï\t'co\": {x}", "k:{x}'\"\\")


async def test_a_completion_of_a_job_that_was_purged_is_refused(queue: AnyQueue) -> None:
    await queue.enqueue("a")
    job: Job = await claim_one(queue)
    await queue.ack(job)
    await queue.purge(older_than_seconds=0)
    assert await queue.ack_many([Completion(job)]) == {job.id}
    assert (await queue.heartbeat([job])).held == set()


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}])
async def test_a_list_is_bounded(wrong: dict[str, Any], queue: AnyQueue) -> None:
    with pytest.raises(ValidationError):
        await queue.list(**wrong)
