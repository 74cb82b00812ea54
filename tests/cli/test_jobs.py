"""`svc-infra jobs`: the worker process and the commands that look after its jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from svc_infra.cli.jobs import app
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs import Job, JobState, SqlJobQueue
from tests.jobs.working import until, until_state

ROOT = Path(__file__).parents[2]
APP = "tests.jobs.effects_app:make"
RUN = [sys.executable, "-c", "from svc_infra.cli.jobs import app; app()", "run"]


@pytest.fixture
def environment(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The app's own environment: an empty SQLite file."""
    for name, value in {"APP_ENV": "test", "SQL_URL": sqlite_url, "JOBS_POLL_INTERVAL_SECONDS": "0.05"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(ROOT)
    return sqlite_url


@asynccontextmanager
async def queued(url: str) -> AsyncIterator[SqlJobQueue]:
    db = AsyncDatabase(url)
    try:
        await upgrade(db)
        yield SqlJobQueue(db)
    finally:
        await db.dispose()


def prepared(url: str) -> dict[str, str]:
    """One job in each state that a command can meet, by its state."""

    async def prepare() -> dict[str, str]:
        async with queued(url) as queue:
            ids = {
                "dead": await queue.enqueue("mail.send", {"to": "x"}, max_attempts=1),
                "succeeded": await queue.enqueue("mail.send", {"to": "y"}),
            }
            dead, succeeded = sorted(await queue.reserve(worker_id="w", limit=2), key=lambda job: job.max_attempts)
            await queue.fail(dead, error="ConnectionError: refused\n  at send")
            await queue.ack(succeeded, result={"sent": True})
            ids["ready"] = await queue.enqueue("report", queue="slow", delay_seconds=3600)
        return ids

    return asyncio.run(prepare())


def found(url: str, job_id: str) -> Job | None:
    async def find() -> Job | None:
        async with queued(url) as queue:
            return await queue.get(job_id)

    return asyncio.run(find())


def run(*arguments: str) -> str:
    """Run a command that succeeds; what it printed."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_the_jobs_and_filters_them(environment: str) -> None:
    ids = prepared(environment)
    everything = run("list", APP)
    assert all(job_id in everything for job_id in ids.values())
    assert "ConnectionError: refused" in everything
    assert "at send" not in everything
    slow = run("list", APP, "--queue", "slow", "--state", "ready")
    assert ids["ready"] in slow
    assert ids["dead"] not in slow
    assert len(run("list", APP, "--limit", "1").splitlines()) == 2


def test_dead_letter_shows_only_the_dead(environment: str) -> None:
    ids = prepared(environment)
    printed = run("dead-letter", APP)
    assert ids["dead"] in printed
    assert ids["succeeded"] not in printed


def test_show_shows_everything_about_a_job(environment: str) -> None:
    ids = prepared(environment)
    printed = run("show", APP, ids["dead"])
    assert '{"to":"x"}' in printed
    assert "at send" in printed
    assert '{"sent":true}' in run("show", APP, ids["succeeded"])


def test_retry_and_cancel_change_the_jobs_that_are_named(environment: str) -> None:
    ids = prepared(environment)
    assert run("retry", APP, ids["dead"]) == f"Job {ids['dead']} waits again.\n"
    assert run("cancel", APP, ids["ready"], ids["dead"]).count("is cancelled.") == 2
    for job_id in (ids["ready"], ids["dead"]):
        job = found(environment, job_id)
        assert job is not None
        assert job.state is JobState.CANCELLED


def test_purge_deletes_what_has_finished_long_enough_ago(environment: str) -> None:
    ids = prepared(environment)
    assert run("purge", APP) == "0 jobs deleted.\n"
    assert run("purge", APP, "--older-than-seconds", "0") == "1 jobs deleted.\n"
    assert found(environment, ids["succeeded"]) is None
    assert found(environment, ids["dead"]) is not None


def test_stats_counts_each_state(environment: str) -> None:
    prepared(environment)
    rows = [line.split() for line in run("stats", APP).splitlines()]
    assert rows[1:-1] == [["ready", "1"], ["running", "0"], ["succeeded", "1"], ["dead", "1"], ["cancelled", "0"]]
    assert rows[-1] == ["oldest", "due", "job", "waits", "0.0", "s"]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["show", APP, "missing"], NotFoundError, "Job missing was not found"),
        (["retry", APP, "missing"], NotFoundError, "Job missing was not found"),
        (["stats", "main"], ConfigurationError, "module:attribute"),
        (["stats", "no_such_module:app"], ConfigurationError, "No module named 'no_such_module'"),
        (["stats", "tests.jobs.effects_app:none"], ConfigurationError, "no attribute 'none'"),
        (["stats", "tests.jobs.effects_app:EFFECTS"], ConfigurationError, "is a str and no app"),
        (["stats", "fastapi:FastAPI"], ConfigurationError, "call add_jobs"),
        (["run", APP, "--queues", " , "], ConfigurationError, "names no queue"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    arguments: list[str], error: type[Exception], named: str, environment: str
) -> None:
    with pytest.raises(error, match=named):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_what_is_in_the_wrong_state_is_refused(environment: str) -> None:
    ids = prepared(environment)
    with pytest.raises(ConflictError, match="succeeded"):
        CliRunner().invoke(app, ["cancel", APP, ids["succeeded"]], catch_exceptions=False)


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts worker processes, and ends those that are left."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([*RUN, APP, *options], cwd=ROOT, env=os.environ.copy()))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_works_on_its_queues_until_a_signal_drains_it(
    number: signal.Signals, environment: str, started: Any
) -> None:
    async with queued(environment) as queue:
        ids = [await queue.enqueue("effect", {"number": "none"}, queue=name, max_attempts=1) for name in ("a", "b")]
        other = await queue.enqueue("effect", {"number": "none"}, queue="other")
        process = started("--queues", "a, b", "--concurrency", "2", "--no-scheduler")
        for job_id in ids:
            assert (await until_state(queue, job_id)).state is JobState.DEAD
        assert (await until_state(queue, other, JobState.READY)).attempts == 0
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_a_second_signal_hands_the_running_jobs_back_at_once(environment: str, started: Any) -> None:
    async with queued(environment) as queue:
        job_id = await queue.enqueue("hang")
        process = started("--no-scheduler")
        await until_state(queue, job_id, JobState.RUNNING)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # another one, as two of a kind may arrive as one
        await until(lambda: process.poll() is not None, seconds=15)
        assert process.returncode == 0
        job = await queue.get(job_id)
        assert job is not None
        assert (job.state, job.attempts) == (JobState.READY, 0)


async def test_run_stores_the_jobs_of_the_schedules(environment: str, started: Any) -> None:
    async with queued(environment) as queue:
        started()

        async def purged() -> bool:
            return "jobs.purge" in {job.name for job in await queue.list()}

        await until(purged, seconds=20)
