"""How soon the jobs of ten quiet tenants start while another tenant floods the queue, beside how soon when it is empty.

One worker process runs no-op jobs, ten at a time by default, which is what users get; each quiet tenant stores a job a
second. Only starts while the flood lasts count.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack

import uvloop

from bench.jobs import opened
from bench.report import table, write
from svc_infra.jobs import JobQueue, JobRequest, Worker, task
from svc_infra.obs.context import Context, enter, leave
from tests.servers import postgres, valkey

TENANTS = 10
STORE = 10_000


class Starts:
    """What the worker has started."""

    def __init__(self) -> None:
        self.flood_left = 0
        self.waited: list[float] = []
        self.drained = asyncio.Event()

    def began(self, tenant: str, stored_at: float, *, flooded: bool) -> None:
        """Note a start; with `flooded` only while jobs of the flood are left."""
        if tenant == "flood":
            self.flood_left -= 1
            if self.flood_left == 0:
                self.drained.set()
        elif self.flood_left > 0 or not flooded:
            self.waited.append(time.perf_counter() - stored_at)


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--flood", type=int, default=100_000)
    options.add_argument("--seconds", type=float, default=15.0)
    options.add_argument("--concurrency", type=int, default=10)
    given = options.parse_args()
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        urls = {
            "sqlite": f"sqlite:///{folder}/jobs.db",
            "postgresql": stack.enter_context(postgres()),
            "valkey": stack.enter_context(valkey()),
        }
        for backend, url in urls.items():
            rows.append(uvloop.run(_measure(backend, url, given)))
    table(
        f"{TENANTS} tenants at 1/s beside one that stored {given.flood:,} jobs: storing to starting, milliseconds", rows
    )
    write("jobs_fairness", rows, ("sqlalchemy", "aiosqlite", "asyncpg", "redis", "svc-infra"))


async def _measure(backend: str, url: str, given: argparse.Namespace) -> dict[str, object]:
    row: dict[str, object] = {"backend": backend}
    async with opened(backend, url) as queue:
        for name, jobs in (("idle", 0), ("flooded", given.flood)):
            waited = await _run(queue, jobs, given)
            row[f"{name} p50"] = waited[len(waited) // 2] * 1e3
            row[f"{name} p95"] = waited[int(len(waited) * 0.95)] * 1e3
            row[f"{name} starts"] = len(waited)
    row["p95, times idle"] = float(str(row["flooded p95"])) / float(str(row["idle p95"]))
    return row


async def _run(queue: JobQueue, flood: int, given: argparse.Namespace) -> list[float]:
    starts = Starts()

    @task(name="bench.fair")
    async def fair(tenant: str, stored_at: float) -> None:
        starts.began(tenant, stored_at, flooded=flood > 0)

    nothing = JobRequest(name="bench.fair", payload={"tenant": "flood", "stored_at": 0.0})
    token = enter(Context(tenant_id="flood"))
    for _ in range(0, flood, STORE):
        await queue.enqueue_many([nothing] * STORE)
    leave(token)
    starts.flood_left = flood
    worker = Worker(queue, [fair], concurrency=given.concurrency)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(1.0)
    until = time.perf_counter() + given.seconds
    quiet = [
        asyncio.create_task(_quiet(queue, f"tenant-{number}", number / TENANTS, until)) for number in range(TENANTS)
    ]
    await asyncio.gather(*quiet)
    if flood:
        await starts.drained.wait()
    worker.stop()
    await running
    return sorted(starts.waited)


async def _quiet(queue: JobQueue, tenant: str, offset: float, until: float) -> None:
    enter(Context(tenant_id=tenant))  # of this task alone
    await asyncio.sleep(offset)
    while time.perf_counter() < until:
        await queue.enqueue("bench.fair", {"tenant": tenant, "stored_at": time.perf_counter()})
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    main()
