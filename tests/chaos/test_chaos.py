"""Nothing is lost and nothing is stale, whatever happens to workers and to what keeps the jobs.

`make chaos` runs this with more jobs, and measures too: CHAOS_JOBS is how many, CHAOS_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from svc_infra.jobs import Job, JobState
from tests.chaos.chaos_app import always_fails
from tests.chaos.history import Event, events_in, faults_in
from tests.chaos.places import opened
from tests.chaos.storm import Storm

JOBS = int(os.environ.get("CHAOS_JOBS", "2000"))
ROUND_JOBS = 4000
"""At most so many at once: Redis keeps the last 10,000 that finished."""
LIMIT_SECONDS = 300.0
"""A round that takes longer than this does not recover."""
BACK_TO = 0.95
"""The part of its throughput that a queue must reach again, in the best of three measurements."""


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
async def test_a_storm_loses_no_job_and_accepts_no_stale_completion(kind: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    histories = tmp_path / "histories"
    histories.mkdir()
    measured = JOBS > ROUND_JOBS
    async with opened(kind) as place:
        storm = Storm(place, histories, seed)
        jobs: dict[str, Job] = {}
        async with storm.workers():
            before = await calm(storm) if measured else 0.0
            jobs.update(await storm.kept())
            for first in range(0, JOBS, ROUND_JOBS):
                await one_round(storm, min(ROUND_JOBS, JOBS - first))
                jobs.update(await storm.kept())
            after = [await calm(storm) for _ in range(3)] if measured else [0.0]
            jobs.update(await storm.kept())
        events = events_in(histories)
        always_fail = frozenset(job_id for job_id in jobs if always_fails(int(job_id)))
        effects = await place.effects()
        exactly_once = place.exactly_once
    told = f"CHAOS_SEED={seed}: {', '.join(storm.log)}"
    print(f"{told}; {before:.0f} jobs/s before, {max(after):.0f} after")
    faults = faults_in(events, jobs, effects, always_fail=always_fail, exactly_once=exactly_once)
    assert not faults, f"{told}: {len(faults)} faults, such as {faults[:10]}"
    assert any(job.crashes for job in jobs.values()), f"{told}: no attempt was cut short: this shows nothing"
    assert max(after) >= BACK_TO * before, f"{told}: {before:.0f} jobs/s before and {max(after):.0f} after"


async def calm(storm: Storm) -> float:
    async with asyncio.timeout(LIMIT_SECONDS):
        return await storm.rate(ROUND_JOBS // 2)


async def one_round(storm: Storm, count: int) -> None:
    """Store jobs while everything goes wrong, and let the workers finish them."""
    try:
        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as both:
            both.create_task(storm.produce(count))
            both.create_task(storm.rage(count))
        async with asyncio.timeout(LIMIT_SECONDS):
            await storm.settled()
    except TimeoutError:
        pytest.fail(f"CHAOS_SEED={storm.seed}: it does not recover from {', '.join(storm.log)}")


# ---------------------------------------------------------------------------------------------------------- the checker

NOW = datetime(2026, 1, 5, tzinfo=UTC)
DONE = Job(
    id="1",
    name="chaos",
    payload={},
    queue="default",
    state=JobState.SUCCEEDED,
    attempts=2,
    crashes=1,
    created_at=NOW,
    available_at=NOW,
    result=[2, "second"],
)
TOLD = [Event("stored", "1"), Event("began", "1", "first"), Event("began", "1", "second")]


@pytest.mark.parametrize(
    ("job", "effects", "fault"),
    [
        (DONE, ["second"], None),
        (None, ["second"], "is lost"),
        (replace(DONE, state=JobState.RUNNING), ["second"], "is running"),
        (replace(DONE, result=[1, "first"]), ["first"], "stale"),
        (replace(DONE, result=[2, "made up"]), ["made up"], "stale"),
        (DONE, ["first", "second"], "2 effects"),
        (DONE, [], "0 effects"),
        (DONE, ["first"], "1 effects"),
        (replace(DONE, state=JobState.DEAD, result=None), [], "is dead"),
        (replace(DONE, state=JobState.DEAD, result=None, crashes=3), ["second"], "has had an effect"),
        (replace(DONE, state=JobState.DEAD, result=None, crashes=3), [], None),
    ],
)
def test_the_checker_finds(job: Job | None, effects: list[str], fault: str | None) -> None:
    jobs = {} if job is None else {"1": job}
    found = faults_in(TOLD, jobs, {"1": effects}, always_fail=frozenset(), exactly_once=True)
    assert (fault is None and not found) or (fault is not None and fault in found[0])
