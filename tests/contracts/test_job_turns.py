"""What every job queue does, whatever keeps its jobs: tenants that take turns, priorities and ageing."""

from __future__ import annotations

from collections import Counter

from svc_infra.testing import FakeClock
from tests.contracts.conftest import AnyQueue, claim, claim_one, enqueue_for, names


async def test_tenants_take_turns_however_much_one_has_waiting(queue: AnyQueue, clock: FakeClock) -> None:
    await enqueue_for(queue, "flood", 50)
    clock.advance(10)
    for tenant in ("b", "c"):
        await enqueue_for(queue, tenant, 2)
    counts = Counter(await names(queue, 6))
    assert counts == {"flood": 2, "b": 2, "c": 2}
    assert await names(queue, 6) == ["flood"] * 6


async def test_a_tenant_that_comes_later_does_not_wait_for_a_flood(queue: AnyQueue) -> None:
    await enqueue_for(queue, "flood", 30)
    await names(queue, 10)
    await enqueue_for(queue, "late")
    seen = await names(queue) + await names(queue)
    assert "late" in seen


async def test_one_at_a_time_goes_round_all_tenants(queue: AnyQueue) -> None:
    for tenant in ("a", "b", "c"):
        await enqueue_for(queue, tenant, 4)
    rounds = [await names(queue) for _ in range(12)]
    assert Counter(name for one in rounds[:6] for name in one) == {"a": 2, "b": 2, "c": 2}
    assert Counter(name for one in rounds for name in one) == {"a": 4, "b": 4, "c": 4}


async def test_tenants_whose_jobs_were_cancelled_hide_no_other(queue: AnyQueue) -> None:
    for tenant in ("a", "b", "c"):
        await enqueue_for(queue, tenant)
    for job in await queue.list():
        await queue.cancel(job.id)
    await enqueue_for(queue, "d")
    assert await names(queue) == ["d"]


async def test_a_heavier_tenant_gets_more_of_each_round(queue: AnyQueue) -> None:
    await queue.configure_queue("default", weights={"big": 3.0})
    for tenant in ("big", "small"):
        await enqueue_for(queue, tenant, 40)
    assert Counter(await names(queue, 40)) == {"big": 30, "small": 10}


async def test_within_a_tenant_priority_and_age_decide(queue: AnyQueue, clock: FakeClock) -> None:
    await enqueue_for(queue, "t", queue="x")
    clock.advance(1)
    await enqueue_for(queue, "t", queue="y", priority=1)
    await enqueue_for(queue, "other", queue="y")
    jobs = await claim(queue, limit=4, queues=["x", "y"])
    assert [job.queue for job in jobs if job.tenant == "t"] == ["y", "x"]


async def test_a_point_of_priority_is_worth_a_minute_of_waiting(queue: AnyQueue, clock: FakeClock) -> None:
    await queue.enqueue("old")
    clock.advance(61)
    await queue.enqueue("one-up", priority=1)
    await queue.enqueue("two-up", priority=2)
    assert await names(queue, 3) == ["two-up", "old", "one-up"]


async def test_a_jobs_tenant_is_that_of_whoever_enqueued_it(queue: AnyQueue) -> None:
    await enqueue_for(queue, "acme")
    assert (await claim_one(queue)).tenant == "acme"


async def test_a_claim_goes_through_as_many_jobs_of_each_lane_as_it_takes(queue: AnyQueue) -> None:
    for tenant in ("a", "b", "c", "d"):
        await enqueue_for(queue, tenant, 20)
    assert Counter(await names(queue, 70)) == {"a": 18, "b": 18, "c": 17, "d": 17}
    assert len(await names(queue, 70)) == 10
