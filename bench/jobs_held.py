"""Claims in PostgreSQL while an idle transaction holds on to everything that a million finished jobs leave behind.

A transaction that is open keeps PostgreSQL from removing what died since it began: of each job that is stored, started
and finished, two dead versions and their index entries stay. A queue that begins each claim at the first of those is
slower with every job. This stores the jobs and finishes them by three statements while such a transaction is open, and
measures before and after: how long a claim takes that finds a job, how long one of a hundred jobs, and how soon a job
starts, at 50 jobs a second.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field

import uvloop
from sqlalchemy import text

from bench.report import table, write
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import JobRequest, SqlJobQueue
from svc_infra.jobs.queue import Completion
from tests.servers import postgres

RATE = 50
BATCH = 100

_STORE = """
INSERT INTO svc_jobs (id, name, queue, state, priority, max_attempts, backoff_seconds, payload, context, created_at,
    available_at, rank)
SELECT 'past-' || lpad(n::text, 9, '0'), 'past', 'default', 'ready', 0, 5, 5, '{}', '{}', t, t,
    (extract(epoch FROM t) * 1000000)::bigint
FROM generate_series(1, :jobs) n, LATERAL (SELECT now() - interval '1 minute' + n * interval '10 microseconds' AS t) t
"""
_START = """
UPDATE svc_jobs SET state = 'running', attempts = 1, started_at = now(), worker_id = 'past',
    token = to_hex(hashtextextended(id, 0)), lease_expires_at = available_at + interval '65 seconds'
WHERE name = 'past'
"""
_FINISH = """
UPDATE svc_jobs SET state = 'succeeded', finished_at = now(), token = NULL, lease_expires_at = NULL WHERE name = 'past'
"""


@dataclass
class Seen:
    """What one run saw, in seconds."""

    claims: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--finished", type=int, default=1_000_000)
    options.add_argument("--jobs", type=int, default=1000, help=f"of each run, {RATE} a second")
    given = options.parse_args()
    with postgres() as url:
        rows = uvloop.run(_measure(url, given.finished, given.jobs))
    table(f"claims in PostgreSQL, {given.jobs:,} jobs at {RATE}/s, milliseconds", rows)
    write("jobs_held", rows, ("sqlalchemy", "asyncpg", "svc-infra"))


async def _measure(url: str, finished: int, jobs: int) -> list[dict[str, object]]:
    database, holder = AsyncDatabase(url), AsyncDatabase(url)
    await upgrade(database)
    await _run(url, RATE)  # warms up
    rows = [_row("empty table", await _run(url, jobs))]
    async with holder.session() as old:
        await old.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await old.execute(text("SELECT count(*) FROM svc_jobs"))
        for statement in (_STORE, _START, _FINISH):
            async with database.session() as session:
                await session.execute(text(statement), {"jobs": finished} if statement is _STORE else {})
        rows.append(_row(f"{finished:,} finished, all held", await _run(url, jobs)))
    await database.dispose()
    await holder.dispose()
    return rows


async def _run(url: str, jobs: int) -> Seen:
    here, there = AsyncDatabase(url), AsyncDatabase(url)
    queue, producer, seen = SqlJobQueue(here), SqlJobQueue(there), Seen()
    ready = asyncio.Event()

    async def consume() -> None:
        await queue.reserve(worker_id="bench")
        await queue.wait(0.1)  # listens from here on
        ready.set()
        while len(seen.starts) < jobs:
            await queue.wait(0.5)
            began = time.perf_counter()
            if found := await queue.reserve(worker_id="bench", limit=10):
                now = time.perf_counter()
                seen.claims.append(now - began)
                seen.starts += [now - job.payload["at"] for job in found]
                await queue.ack_many([Completion(job) for job in found])

    consuming = asyncio.create_task(consume())
    await ready.wait()
    due = time.perf_counter()
    for _ in range(jobs):
        due += 1 / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await producer.enqueue("bench", {"at": time.perf_counter()})
    await consuming
    for _ in range(jobs // 10):
        await queue.enqueue_many([JobRequest(name="bench") for _ in range(BATCH)])
        began = time.perf_counter()
        found = await queue.reserve(worker_id="bench", limit=BATCH)
        seen.batches.append(time.perf_counter() - began)
        await queue.ack_many([Completion(job) for job in found])
    await here.dispose()
    await there.dispose()
    return seen


def _row(what: str, seen: Seen) -> dict[str, object]:
    row: dict[str, object] = {"table": what}
    for name, values in (("claim", seen.claims), (f"claim of {BATCH}", seen.batches), ("start", seen.starts)):
        values.sort()
        row[f"{name} p50"] = values[len(values) // 2] * 1e3
        row[f"{name} p99"] = values[int(len(values) * 0.99)] * 1e3
    return row


if __name__ == "__main__":
    main()
