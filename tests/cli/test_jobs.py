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
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, ValidationError
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
            await queue.fail(dead, error="ConnectionError: refused\n  at send", fingerprint="f1")
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
    printed = run("dead-letter", "list", APP)
    assert ids["dead"] in printed
    assert ids["succeeded"] not in printed
    assert ids["dead"] not in run("dead-letter", "list", APP, "--fingerprint", "another")
    assert ids["dead"] in run("dead-letter", "list", APP, "--fingerprint", "f1", "--name", "mail.send")


def several_dead(url: str) -> list[str]:
    """Three dead jobs, two of them of the same error."""

    async def prepare() -> list[str]:
        async with queued(url) as queue:
            ids = [await queue.enqueue("mail.send", {"to": to}, max_attempts=1) for to in ("x", "y", "z")]
            for job in await queue.reserve(worker_id="w", limit=3):
                refused = job.payload["to"] != "z"
                error, mark = ("ConnectionError: refused", "f1") if refused else ("ValueError: no address", "f2")
                await queue.fail(job, error=error, fingerprint=mark)
        return ids

    return asyncio.run(prepare())


def states(url: str, ids: list[str]) -> list[JobState]:
    return [job.state for job_id in ids if (job := found(url, job_id)) is not None]


def test_search_counts_the_dead_by_their_errors(environment: str) -> None:
    ids = several_dead(environment)
    rows = [line.split() for line in run("dead-letter", "search", APP).splitlines()[1:]]
    assert [row[:3] for row in rows] == [["2", "mail.send", "f1"], ["1", "mail.send", "f2"]]
    assert rows[1][3:] == [ids[2], "ValueError:", "no", "address"]
    assert len(run("dead-letter", "search", APP, "--name", "other").splitlines()) == 1


def test_a_dead_job_is_edited_and_replayed(environment: str) -> None:
    ids = several_dead(environment)
    run("dead-letter", "edit", APP, ids[2], '{"to": "better"}')
    assert run("dead-letter", "replay", APP, ids[2]) == "1 jobs wait again.\n"
    job = found(environment, ids[2])
    assert job is not None
    assert (job.state, job.attempts, job.payload) == (JobState.READY, 0, {"to": "better"})


def test_all_that_died_of_one_error_are_replayed_at_a_rate(environment: str) -> None:
    ids = several_dead(environment)
    printed = run("dead-letter", "replay", APP, "--fingerprint", "f1", "--per-second", "0.1")
    assert printed == "2 jobs wait again.\n"
    assert states(environment, ids) == [JobState.READY, JobState.READY, JobState.DEAD]
    due = [job.available_at for job_id in ids[:2] if (job := found(environment, job_id)) is not None]
    assert abs((due[1] - due[0]).total_seconds()) == pytest.approx(10, abs=1)
    assert run("dead-letter", "replay", APP, "--all") == "1 jobs wait again.\n"


def test_dead_jobs_are_deleted_only_on_demand(environment: str) -> None:
    ids = several_dead(environment)
    assert run("purge", APP, "--older-than-seconds", "0") == "0 jobs deleted.\n"
    assert run("dead-letter", "purge", APP, "--older-than-seconds", "3600") == "0 jobs deleted.\n"
    assert run("dead-letter", "purge", APP, "--older-than-seconds", "0") == "3 jobs deleted.\n"
    assert states(environment, ids) == []


def test_a_queue_is_paused_and_resumed(environment: str) -> None:
    prepared(environment)
    assert run("pause", APP, "slow", "mail") == "Queue slow is paused.\nQueue mail is paused.\n"
    for command in ("stats", "top"):
        rows = {line.split()[0]: line for line in run(command, APP).splitlines() if line.strip()}
        assert rows["slow"].endswith("paused") or " paused " in rows["slow"]
    assert run("resume", APP, "slow") == "Queue slow goes on.\n"
    assert "paused" not in next(line for line in run("stats", APP).splitlines() if "slow" in line)


def test_top_shows_the_queues_and_the_counts(environment: str) -> None:
    prepared(environment)
    printed = run("top", APP, "--looks", "2", "--seconds", "0.1")
    assert "1 ready" in printed
    assert "1 dead" in printed
    assert "slow" in printed


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
    assert rows[1:6] == [["ready", "1"], ["running", "0"], ["succeeded", "1"], ["dead", "1"], ["cancelled", "0"]]
    assert rows[6] == ["oldest", "due", "job", "waits", "0.0", "s"]
    assert rows[-1] == ["slow", "1", "0", "0.0", "s"]


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
        (["dead-letter", "edit", APP, "missing", "{}"], NotFoundError, "Job missing was not found"),
        (["dead-letter", "edit", APP, "missing", "{"], ValidationError, "are no JSON"),
        (["dead-letter", "replay", APP], ValidationError, "Name the jobs, or choose"),
        (["dead-letter", "replay", APP, "one", "--all"], ValidationError, "Name the jobs, or choose"),
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

    def start(*options: str, app: str = APP, folder: Path = ROOT) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([*RUN, app, *options], cwd=folder, env=os.environ.copy()))
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
        facts = await queue.enqueue("facts", queue="a")
        process = started("--queues", "a, b", "--concurrency", "2", "--no-scheduler")
        for job_id in ids:
            assert (await until_state(queue, job_id, seconds=30)).state is JobState.DEAD
        about = (await until_state(queue, facts)).result
        assert about["frozen"] > 10_000
        assert about["loop"] == "uvloop"
        assert (await until_state(queue, other, JobState.READY)).attempts == 0
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_a_second_signal_hands_the_running_jobs_back_at_once(environment: str, started: Any) -> None:
    async with queued(environment) as queue:
        job_id = await queue.enqueue("hang")
        process = started("--no-scheduler")
        await until_state(queue, job_id, JobState.RUNNING, seconds=30)
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


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that it has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in found.split()]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def workers_of(queue: SqlJobQueue, count: int) -> list[str]:
    """The worker ids of jobs that hang, once so many run."""

    async def reached() -> bool:
        return len(await queue.list(state=JobState.RUNNING)) == count

    await until(reached, seconds=30)
    return [str(job.worker_id) for job in await queue.list(state=JobState.RUNNING)]


async def test_several_processes_share_the_work_and_a_signal_reaches_them_all(environment: str, started: Any) -> None:
    async with queued(environment) as queue:
        for _ in range(2):
            await queue.enqueue("hang")
        process = started("--processes", "2", "--concurrency", "1", "--no-scheduler")
        assert len({worker.split(":")[1] for worker in await workers_of(queue, 2)}) == 2
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert [job.attempts for job in await queue.list(state=JobState.READY)] == [0, 0]


async def test_a_process_that_its_job_kills_is_started_again_and_the_job_ends_in_the_dead_letter(
    environment: str, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS_LEASE_SECONDS", "1")
    async with queued(environment) as queue:
        deadly = await queue.enqueue("leave")
        started("--processes", "2", "--concurrency", "1", "--no-scheduler")
        async with asyncio.timeout(90):
            job = await queue.wait_for(deadly, 90)
        await queue.enqueue("hang")
        await workers_of(queue, 1)
    assert (job.state, job.crashes) == (JobState.DEAD, 3)


async def test_a_changed_source_starts_the_worker_again(
    environment: str, started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with queued(environment) as queue:
        (tmp_path / "watched").mkdir()
        module = tmp_path / "watched" / "own.py"
        module.write_text("from tests.jobs.effects_app import make\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        process = started("--reload", "--no-scheduler", app="own:make", folder=tmp_path / "watched")
        await until(lambda: len(children(process)) == 1, seconds=20)
        first = children(process)
        await queue.enqueue("hang")
        await workers_of(queue, 1)
        module.write_text(module.read_text() + "# changed\n")
        await until(lambda: not is_alive(first[0]) and len(children(process)) == 1, seconds=40)
        assert children(process) != first
        process.terminate()
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_workers_whose_supervisor_is_killed_end_by_themselves(environment: str, started: Any) -> None:
    async with queued(environment):
        process = started("--processes", "2", "--no-scheduler")
        await until(lambda: len(children(process)) == 2, seconds=20)
        orphans = children(process)
        process.kill()
        process.wait()
        await until(lambda: not any(is_alive(orphan) for orphan in orphans), seconds=30)


def test_an_app_that_cannot_start_is_not_tried_again_and_again(environment: str, started: Any) -> None:
    process = started("--processes", "2", app="tests.jobs.effects_app:EFFECTS")
    assert process.wait(20) != 0
