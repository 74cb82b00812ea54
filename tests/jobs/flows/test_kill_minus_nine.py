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

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import SqlJobQueue
from svc_infra.jobs.flows import Flows, FlowState, Workflow
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


def start(url: str) -> subprocess.Popen[bytes]:
    """A worker process."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "REDIS_URL"}
    return subprocess.Popen([*WORKER, "--no-scheduler"], cwd=ROOT, env={**environment, "SQL_URL": url})


async def worked(url: str, fact: Callable[[], Awaitable[bool]], sign: signal.Signals) -> None:
    """Let a worker process run until this is so, then send it a signal."""
    worker = start(url)

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


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_killed_workers_lose_no_step_and_repeat_none(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    db = AsyncDatabase(url)
    await upgrade(db)
    flows = Flows(SqlJobQueue(db), db)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer, before integer)"))
    steps = FLOWS * WIDTH * DEPTH
    for number in range(FLOWS):
        await layers(number * WIDTH * DEPTH).start(on=flows)
    points = sorted(random.sample(range(5, steps // 2), KILLS))

    async def effects() -> list[tuple[int, int]]:
        async with db.session(read_only=True) as session:
            rows = await session.execute(text("SELECT number, before FROM effects ORDER BY number"))
            return [(row.number, row.before) for row in rows]

    async def ended() -> bool:
        return all(one.state is FlowState.SUCCEEDED for one in await flows.list(limit=FLOWS))

    for point in points:

        async def reached(point: int = point) -> bool:
            return len(await effects()) >= point

        await worked(url, reached, signal.SIGKILL)
    await worked(url, ended, signal.SIGTERM)
    happened = await effects()
    jobs = await SqlJobQueue(db).list(limit=1000)
    await db.dispose()
    expected = [(number, 0 if number % (WIDTH * DEPTH) < WIDTH else WIDTH) for number in range(steps)]
    assert happened == expected, f"killed at {points}"
    assert sum(job.name == "effect" for job in jobs) == steps
