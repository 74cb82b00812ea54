"""Claims, turns and gathered calls of the queue in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis

from svc_infra.jobs.job import Job, JobRequest, JobState, Limit
from svc_infra.jobs.redis import claims
from svc_infra.jobs.redis.claims import VOID_SECONDS, Terms
from svc_infra.jobs.redis.queue import RedisJobQueue
from svc_infra.obs.context import Context, enter, leave
from svc_infra.redis import connect

TOKEN = "t" * 32


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[redis.Redis]:
    async with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
async def queue(valkey_url: str) -> AsyncIterator[RedisJobQueue]:
    queue = RedisJobQueue(valkey_url)
    yield queue
    await queue.close()


async def claim_one(queue: RedisJobQueue) -> Job:
    (job,) = await queue.reserve(worker_id="worker")
    return job


async def blocked(queue: RedisJobQueue, clients: int) -> None:
    """Wait until the server holds this many blocked clients."""
    async with asyncio.timeout(5):
        while (await queue._client.info("clients"))["blocked_clients"] < clients:
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------- claiming while one waits


async def test_what_wakes_a_waiting_worker_is_claimed_for_its_next_look(valkey_url: str, queue: RedisJobQueue) -> None:
    assert await queue.reserve(worker_id="w", limit=2) == []
    waiting = asyncio.create_task(queue.wait(30))
    other = RedisJobQueue(valkey_url)
    await blocked(other, 1)
    await other.enqueue("a", {"n": 1})
    await asyncio.wait_for(waiting, timeout=5)
    assert [job.state for job in await other.list()] == [JobState.RUNNING]
    (job,) = await queue.reserve(worker_id="w", limit=2)
    assert (job.payload, job.attempts, job.worker_id) == ({"n": 1}, 1, "w")
    await queue.ack(job)
    await other.close()


async def test_a_worker_that_closes_hands_back_what_waiting_claimed_for_it(
    valkey_url: str, queue: RedisJobQueue
) -> None:
    gone = RedisJobQueue(valkey_url)
    assert await gone.reserve(worker_id="gone") == []
    await queue.enqueue("a")
    await gone.wait(5)
    assert [job.state for job in await queue.list()] == [JobState.RUNNING]
    await gone.close()
    job = await claim_one(queue)
    assert (job.attempts, job.crashes) == (1, 0)


async def test_a_claim_whose_answer_nobody_reads_is_handed_back_unspent(queue: RedisJobQueue) -> None:
    await queue.enqueue("a")
    assert len((await revocable_claim(queue))[1]) == 1
    await queue._run("abandon", TOKEN, VOID_SECONDS, 100)
    job = await claim_one(queue)
    assert (job.attempts, job.crashes, job.worker_id) == (1, 0, "worker")


async def test_a_claim_that_was_given_up_before_the_server_saw_it_is_never_made(queue: RedisJobQueue) -> None:
    await queue.enqueue("a")
    await queue._run("abandon", TOKEN, VOID_SECONDS, 100)
    assert (await revocable_claim(queue))[1] == []
    assert (await claim_one(queue)).attempts == 1


async def test_giving_up_a_claim_looks_at_no_job_of_others(queue: RedisJobQueue, client: redis.Redis) -> None:
    await queue.enqueue_many([JobRequest(name="a") for _ in range(500)])
    assert len(await queue.reserve(worker_id="other", limit=499)) == 499
    assert len((await revocable_claim(queue))[1]) == 1
    before = await calls(client)
    await queue._run("abandon", TOKEN, VOID_SECONDS, 100)
    assert await calls(client) - before < 50
    assert len(await queue.reserve(worker_id="other", limit=5)) == 1


async def calls(client: redis.Redis) -> int:
    """How many commands the server has run, those of scripts included."""
    return sum(one["calls"] for one in (await client.info("commandstats")).values())


async def revocable_claim(queue: RedisJobQueue) -> list[Any]:
    arguments = queue._claims.arguments(Terms("gone", ("default",), 15.0, 5), TOKEN, f"{{jobs}}:void:{TOKEN}")
    return list(await queue._run("reserve", *arguments))


async def test_a_wait_that_is_cancelled_gives_its_claim_up(valkey_url: str, queue: RedisJobQueue) -> None:
    leaving = RedisJobQueue(valkey_url)
    assert await leaving.reserve(worker_id="leaving") == []
    waiting = asyncio.create_task(leaving.wait(30))
    await blocked(queue, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await queue.enqueue("a")
    await leaving.close()
    assert len(await queue._client.keys("{jobs}:void:*")) == 1  # should the server come to it all the same
    job = await claim_one(queue)
    assert (job.attempts, job.crashes) == (1, 0)


async def test_two_workers_may_wait_on_one_queue(valkey_url: str, queue: RedisJobQueue) -> None:
    assert await queue.reserve(worker_id="w", limit=2) == []
    waiting = [asyncio.create_task(queue.wait(30)) for _ in range(2)]
    await blocked(queue, 2)
    other = RedisJobQueue(valkey_url)
    for number in range(2):  # each wakes one of the two, and nobody takes what they claim meanwhile
        await other.enqueue("a", job_id=f"job{number}")
    await asyncio.wait_for(asyncio.gather(*waiting), timeout=5)
    await other.close()
    jobs = [job for _ in range(2) for job in await queue.reserve(worker_id="w", limit=2)]
    assert sorted(job.id for job in jobs) == ["job0", "job1"]


async def test_waiting_goes_on_when_the_server_has_closed_the_connection(
    queue: RedisJobQueue, client: redis.Redis
) -> None:
    for number in range(2):
        waiting = asyncio.create_task(claimed_while_waiting(queue))
        await blocked(queue, 1)
        await queue.enqueue("a", {"n": number})
        assert (await waiting).payload == {"n": number}
        await client.client_kill_filter(_type="normal", skipme=True)


# --------------------------------------------------------------------------------------------- what comes by itself


async def claimed_while_waiting(queue: RedisJobQueue, *queues: str) -> Job:
    """What a worker gets that looks when it is woken, and by itself only after a longer time than this takes."""
    async with asyncio.timeout(3):
        for _ in range(4):
            if jobs := await queue.reserve(worker_id="w", queues=queues or ("default",)):
                return jobs[0]
            await queue.wait(30)
    raise AssertionError("woken again and again for nothing")


@pytest.fixture
def long_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BLOCK_SECONDS", 4.0)


@pytest.mark.usefixtures("long_blocks")
async def test_a_worker_waits_no_longer_than_until_a_job_is_due(queue: RedisJobQueue) -> None:
    await queue.enqueue("a", queue="other", delay_seconds=0.2)
    await queue.enqueue("b", delay_seconds=60)
    job = await claimed_while_waiting(queue, "default", "other")
    assert job.started_at is not None
    assert (job.name, job.started_at >= job.available_at) == ("a", True)


@pytest.mark.usefixtures("long_blocks")
async def test_a_job_that_is_due_sooner_than_the_others_is_told_to_who_waits(
    valkey_url: str, queue: RedisJobQueue, client: redis.Redis
) -> None:
    await queue.enqueue("late", delay_seconds=60)
    await client.delete("{jobs}:wake:default")
    waiting = RedisJobQueue(valkey_url)
    look = asyncio.create_task(claimed_while_waiting(waiting))
    await blocked(queue, 1)
    await queue.enqueue("later", delay_seconds=90)  # nobody has to know of it
    assert await client.exists("{jobs}:wake:default") == 0
    await queue.enqueue("soon", delay_seconds=0.2)
    assert (await look).name == "soon"
    await waiting.close()


@pytest.mark.usefixtures("long_blocks")
async def test_a_worker_waits_no_longer_than_until_a_lease_ends(queue: RedisJobQueue) -> None:
    await queue.enqueue("a")
    assert len(await queue.reserve(worker_id="dead", lease_seconds=0.2)) == 1
    assert (await claimed_while_waiting(queue)).crashes == 1


# ------------------------------------------------------------------------------------------------- turns across claims


async def enqueue_as(queue: RedisJobQueue, tenant: str, *ids: str) -> None:
    token = enter(Context(tenant_id=tenant))
    try:
        for job_id in ids:
            await queue.enqueue("a", job_id=job_id)
    finally:
        leave(token)


async def test_a_tenant_that_comes_back_at_once_does_not_starve_the_others(queue: RedisJobQueue) -> None:
    await enqueue_as(queue, "b", *(f"b{number}" for number in range(10)))
    order = []
    for number in range(10):
        await enqueue_as(queue, "a", f"a{number}")
        order += [job.id[0] for job in await queue.reserve(worker_id="w")]
    assert order.count("a") == order.count("b") == 5


async def test_two_workers_share_the_turns_of_the_tenants(valkey_url: str, queue: RedisJobQueue) -> None:
    other = RedisJobQueue(valkey_url)
    await enqueue_as(queue, "flood", *(f"flood{number}" for number in range(20)))
    await enqueue_as(queue, "x", *(f"x{number}" for number in range(5)))
    await enqueue_as(queue, "y", *(f"y{number}" for number in range(5)))
    claimed = []
    for worker in (queue, other) * 3:
        claimed += [job.tenant for job in await worker.reserve(worker_id="w", limit=2)]
    assert Counter(claimed) == {"flood": 4, "x": 4, "y": 4}
    await other.close()


async def test_a_job_that_ends_wakes_the_queues_that_its_limit_held_back(queue: RedisJobQueue) -> None:
    for name in ("one", "two"):
        await queue.enqueue("a", queue=name, limit=Limit("key", concurrency=1))
    first = await queue.reserve(worker_id="w", queues=["one"])
    assert await queue.reserve(worker_id="w", queues=["two"]) == []
    assert await queue._client.blpop(["{jobs}:wake:two"], timeout=1) is not None  # that of its enqueueing
    await queue.ack(first[0])
    assert await queue._client.blpop(["{jobs}:wake:two"], timeout=1) is not None
    assert len(await queue.reserve(worker_id="w", queues=["two"])) == 1


async def test_many_enqueues_of_one_moment_are_few_commands(queue: RedisJobQueue, client: redis.Redis) -> None:
    await queue.enqueue("first")
    before = await evaluations(client)
    ids = await asyncio.gather(*(queue.enqueue("a", {"n": number}) for number in range(200)))
    assert await evaluations(client) - before <= 2
    stored = {job.id: job.payload["n"] for job in await queue.list(name="a", limit=200)}
    assert stored == {job_id: number for number, job_id in enumerate(ids)}


async def evaluations(client: redis.Redis) -> int:
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def test_a_caller_that_is_cancelled_harms_nobody_who_enqueues_with_it(queue: RedisJobQueue) -> None:
    calls = [asyncio.create_task(queue.enqueue("a", job_id=str(number))) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    assert await asyncio.gather(*calls, return_exceptions=True) != ["0", "1", "2"]
    assert [await call for call in (calls[0], calls[2])] == ["0", "2"]


# -------------------------------------------------------------------------------------------------- kept connections


async def numbers(client: redis.Redis, name: str) -> set[str]:
    return {one["id"] for one in await client.client_list() if one["name"] == name}


async def test_lone_steps_share_a_connection_that_is_kept_and_replaced(valkey_url: str, client: redis.Redis) -> None:
    async with connect(valkey_url, client_name="steps") as own:
        queue = RedisJobQueue(own)
        await queue.enqueue("a")  # sends the script from the pool
        of_the_pool = str(await own.client_id())
        await queue.enqueue("a")
        (kept,) = await numbers(client, "steps") - {of_the_pool}
        await client.client_kill_filter(_id=kept)
        await queue.enqueue("a")
        (again,) = await numbers(client, "steps") - {of_the_pool}
        assert again != kept
        await queue.enqueue("a")
        assert await numbers(client, "steps") == {of_the_pool, again}
        assert set(await asyncio.gather(*(own.client_id() for _ in range(2)))) & {int(again)} == set()
        await queue.close()
        assert int(again) in await asyncio.gather(*(own.client_id() for _ in range(3)))


async def test_of_a_small_pool_no_connection_is_kept_from_those_who_wait(valkey_url: str) -> None:
    async with connect(valkey_url, max_connections=1, timeout_seconds=2.0) as own:
        queue = RedisJobQueue(own)
        await queue.enqueue_many([JobRequest(name="a") for _ in range(5)])
        jobs = await queue.reserve(worker_id="w", limit=5)
        await asyncio.gather(*(queue.ack(job) for job in jobs), *(queue.stats() for _ in range(5)))
        await queue.wait(0.01)
        assert (await queue.stats()).counts[JobState.SUCCEEDED] == 5
        await queue.close()
