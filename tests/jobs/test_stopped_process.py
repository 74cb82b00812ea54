"""A worker process that stands still for longer than its lease, and then goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.jobs import Job, JobState, SqlJobQueue
from tests.jobs.test_kill_minus_nine import ENVIRONMENT, ROOT, WORKER
from tests.jobs.working import until, until_state


def started(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*WORKER, "--no-scheduler"], cwd=ROOT, env={**ENVIRONMENT, "SQL_URL": url})


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_attempt_of_a_process_that_stood_still_has_no_effect(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, gate = request.getfixturevalue(f"{kind}_url"), tmp_path / "gate"
    db = AsyncDatabase(url)
    await upgrade(db)
    async with db.session() as session:
        await session.execute(text("CREATE TABLE effects (number integer)"))
    queue = SqlJobQueue(db)
    job_id = await queue.enqueue("wait_for_file", {"path": str(gate)})
    process = started(url)
    taken: list[Job] = []

    async def taken_over() -> bool:
        taken.extend(await queue.reserve(worker_id="other", lease_seconds=60))
        return bool(taken)

    try:
        await until_state(queue, job_id, JobState.RUNNING, seconds=30)
        os.kill(process.pid, signal.SIGSTOP)
        await until(taken_over, seconds=30)
        gate.touch()
        os.kill(process.pid, signal.SIGCONT)
        later = await queue.enqueue("effect", {"number": 2})
        await until_state(queue, later, seconds=30)
        await queue.ack(taken[0], result="by the other")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    job = await until_state(queue, job_id)
    async with db.session(read_only=True) as session:
        effects = list((await session.execute(text("SELECT number FROM effects"))).scalars())
    await db.dispose()
    assert (job.state, job.result, job.attempts, job.crashes) == (JobState.SUCCEEDED, "by the other", 2, 1)
    assert effects == [2]
