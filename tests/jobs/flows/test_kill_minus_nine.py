"""A worker process that is killed in the middle of flows, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase, Outbox
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import RedisJobQueue, SqlJobQueue
from svc_infra.jobs.flows import Batch, Flows, FlowState, Workflow
from tests.jobs.flows.flows_app import effect
from tests.jobs.working import until

FLOWS, WIDTH, DEPTH = 10, 4, 4
KILLS = 2
ROOT = Path(__file__).parents[3]
WORKER = [sys.executable, "-c", "from svc_infra.cli.jobs import app; app()", "run", "tests.jobs.flows.flows_app:make"]
ENVIRONMENT = {
    **os.environ,
    "APP_ENV": "test",
    "JOBS_LEASE_SECONDS": "1",
    "JOBS_POLL_INTERVAL_SECONDS": "0.05",
    "LOG_LEVEL": "ERROR",
}


def layers(first: int) -> Workflow:
    """Layers of steps, each of which takes the results of the whole layer before."""
    flow = Workflow("layers")
    before = []
    for depth in range(DEPTH):
        numbers = range(first + depth * WIDTH, first + (depth + 1) * WIDTH)
        before = [flow.add(effect, {"number": number, "before": before}, name=f"s{number}") for number in numbers]
    return flow


def items(first: int, callback: int) -> Batch:
    """Steps that wait for nothing, and a step that tells of their common end."""
    batch = Batch("items")
    for number in range(first, callback):
        batch.add(effect, {"number": number, "before": []}, name=f"s{number}")
    batch.on_complete(effect, {"number": callback, "before": []})
    return batch


def start(urls: dict[str, str]) -> subprocess.Popen[bytes]:
    """A worker process."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "REDIS_URL"}
    return subprocess.Popen([*WORKER, "--no-scheduler"], cwd=ROOT, env={**environment, **urls})


async def worked(urls: dict[str, str], fact: Callable[[], Awaitable[bool]], sign: signal.Signals) -> None:
    """Let a worker process run until this is so, then send it a signal."""
    worker = start(urls)

    async def reached() -> bool:
        assert worker.poll() is None, f"the worker ended by itself with {worker.returncode}"
        return await fact()

    try:
        await until(reached, seconds=60)
        worker.send_signal(sign)
        await asyncio.to_thread(worker.wait, 20)
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
async def test_killed_workers_lose_no_step_and_repeat_none(kind: str, request: pytest.FixtureRequest) -> None:
    """Effects are written with the end of their step, so that they happen once even where the jobs are in Valkey."""
    urls = {"SQL_URL": request.getfixturevalue("postgres_url" if kind == "postgres" else "sqlite_url")}
    db = AsyncDatabase(urls["SQL_URL"])
    await upgrade(db)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer, before integer)"))
    queue: SqlJobQueue | RedisJobQueue = SqlJobQueue(db)
    if kind == "valkey":
        urls["REDIS_URL"] = request.getfixturevalue("valkey_url")
        queue = RedisJobQueue(urls["REDIS_URL"], outbox=Outbox())  # which the workers relay
    flows = Flows(queue, db)
    size = WIDTH * DEPTH
    steps = FLOWS * size + 1
    for first in range(0, (FLOWS - 1) * size, size):
        await layers(first).start(on=flows)
    await items((FLOWS - 1) * size, steps - 1).start(on=flows)
    points = sorted(random.sample(range(5, steps // 2), KILLS))

    async def effects() -> list[tuple[int, int]]:
        async with db.session(read_only=True) as session:
            rows = await session.execute(text("SELECT number, before FROM effects ORDER BY number"))
            return [(row.number, row.before) for row in rows]

    async def ended() -> bool:
        return len(await effects()) >= steps and all(
            one.state is FlowState.SUCCEEDED for one in await flows.list(limit=FLOWS)
        )

    for point in points:

        async def reached(point: int = point) -> bool:
            return len(await effects()) >= point

        await worked(urls, reached, signal.SIGKILL)
    await worked(urls, ended, signal.SIGTERM)
    happened = await effects()
    jobs = await queue.list(limit=1000)
    if isinstance(queue, RedisJobQueue):
        await queue.close()
    await db.dispose()
    layered = range((FLOWS - 1) * size)
    expected = [(number, WIDTH if number in layered and number % size >= WIDTH else 0) for number in range(steps)]
    assert happened == expected, f"killed at {points}"
    assert sum(job.name == "effect" for job in jobs) == steps
