"""Claims of the queue in SQL where jobs wait in more lanes than one claim looks at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.jobs.job import JobRequest, Limit
from svc_infra.jobs.sql import postgres, postgres_steps, sqlite
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.obs.context import restored
from svc_infra.testing import FakeClock


@pytest.fixture
def few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (sqlite, postgres, postgres_steps):
        monkeypatch.setattr(place, "LANES_LIMIT", 4)
    monkeypatch.setattr(postgres_steps, "MANY_LANES", 2)


@pytest.mark.usefixtures("few_lanes")
async def test_full_limits_hide_no_job_however_many_they_are(db: AsyncDatabase) -> None:
    queue = SqlJobQueue(db, clock=FakeClock())
    limits = [Limit(f"key-{number:02}", concurrency=1) for number in range(20)]
    await queue.enqueue_many([JobRequest(name="a", limit=limit) for limit in limits * 2])
    running = [job for _ in range(20) for job in await queue.reserve(worker_id="w", limit=20)]
    assert sorted(job.limit_key or "" for job in running) == [limit.key for limit in limits]
    for number in (3, 9, 17):
        await queue.enqueue("free", limit=Limit(f"key-{number:02}-free", concurrency=1))
    await queue.wait(0.01)
    found: list[str] = []
    async with asyncio.timeout(10):
        while len(found) < 3:
            jobs = await queue.reserve(worker_id="w", limit=20)
            found += [job.name for job in jobs]
            await queue.wait(0.0 if jobs else 30)  # not that long, as it has not seen all
    assert found == ["free"] * 3


@pytest.mark.usefixtures("few_lanes")
async def test_a_queue_with_many_tenants_starves_no_other_queue(db: AsyncDatabase) -> None:
    queue, served = SqlJobQueue(db, clock=FakeClock()), ["default", "other"]
    for number in range(9):
        with restored({"tenant_id": f"tenant-{number}"}):
            await queue.enqueue_many([JobRequest(name="a", limit=Limit("all", concurrency=99)) for _ in range(9)])
    await queue.enqueue("quiet", queue="other")
    started = [job for _ in range(9) for job in await queue.reserve(worker_id="w", queues=served, limit=4)]
    assert "quiet" in [job.name for job in started]
    assert len({job.tenant for job in started}) == 10


async def test_what_others_have_started_under_limits_costs_a_claim_no_turn(
    postgres_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, all_have_looked, looks = postgres_steps.PostgresSteps._limits, asyncio.Barrier(3), 0

    async def look_together(*arguments: Any, lock: bool = False) -> Any:
        nonlocal looks
        seen = await look(*arguments, lock=lock)
        looks += not lock
        if not lock and looks <= 3:
            await all_have_looked.wait()
        return seen

    monkeypatch.setattr(postgres_steps.PostgresSteps, "_limits", look_together)
    monkeypatch.setattr(postgres_steps, "MANY_LANES", 5)
    queues = [SqlJobQueue(postgres_db) for _ in range(3)]
    limits = [Limit(f"key-{number}", concurrency=1) for number in range(30)]
    await queues[0].enqueue_many([JobRequest(name="a", limit=limit) for limit in limits])
    started = await asyncio.gather(*(queue.reserve(worker_id="w", limit=10) for queue in queues))
    assert min(map(len, started)) > 0
    assert len({job.id for jobs in started for job in jobs}) == sum(map(len, started)) >= 20
