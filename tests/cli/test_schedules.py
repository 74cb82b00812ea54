"""`svc-infra schedules`, as a person runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svc_infra.cli.schedules import app
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.errors import NotFoundError, ValidationError
from svc_infra.jobs import Job, SqlJobQueue

APP = "tests.jobs.effects_app:make"
EVERY_DAY = '{"task": "effect", "cron": "30 6 * * *", "tz": "Asia/Tokyo", "payload": {"number": 7}}'


@pytest.fixture(autouse=True)
def environment(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The app's own environment: an empty SQLite file."""
    monkeypatch.setenv("APP_ENV", "test")
    monkeypatch.setenv("SQL_URL", sqlite_url)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(Path(__file__).parents[2])
    return sqlite_url


def run(*arguments: str) -> str:
    """Run a command that succeeds; what it printed."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def row(name: str) -> str:
    (found,) = [line for line in run("list", APP).splitlines() if line.strip().startswith(name)]
    return found


def jobs(url: str) -> list[Job]:
    async def ask() -> list[Job]:
        db = AsyncDatabase(url)
        try:
            await upgrade(db)
            return await SqlJobQueue(db).list()
        finally:
            await db.dispose()

    return asyncio.run(ask())


def test_list_shows_what_is_declared_and_what_was_put() -> None:
    assert run("put", APP, "morning", EVERY_DAY).startswith("morning is due next at 20")
    purge = row("jobs.purge")
    assert "every 300 s" in purge
    assert "declared" in purge
    morning = row("morning")
    assert "cron 30 6 * * * Asia/Tokyo" in morning
    assert "stored" in morning
    assert "21:30:00+00:00" in morning


def test_show_shows_the_definition_and_next_the_times() -> None:
    run("put", APP, "morning", EVERY_DAY)
    shown = run("show", APP, "morning")
    assert '{"number":7}' in shown
    assert "run_once" in shown
    times = run("next", APP, "morning", "--count", "3").splitlines()
    assert len(times) == 3
    assert all(time.endswith("T21:30:00+00:00") for time in times)
    assert len(run("next", APP, "morning").splitlines()) == 10


def test_pause_and_resume_change_every_process_that_looks() -> None:
    assert run("pause", APP, "jobs.purge") == "jobs.purge is paused.\n"
    assert "declared, paused" in row("jobs.purge")
    assert run("resume", APP, "jobs.purge") == "jobs.purge goes on.\n"
    assert "paused" not in row("jobs.purge")


def test_run_now_stores_a_job_and_prints_its_id(environment: str) -> None:
    run("put", APP, "morning", EVERY_DAY)
    job_id = run("run-now", APP, "morning").strip()
    (job,) = jobs(environment)
    assert (job.id, job.name, job.payload) == (job_id, "effect", {"number": 7})
    assert job_id in row("morning")


def test_an_edit_and_a_deletion_are_seen() -> None:
    run("put", APP, "jobs.purge", '{"task": "jobs.purge", "every_seconds": 60, "payload": {"older_than_seconds": 9}}')
    assert "declared, edited" in row("jobs.purge")
    assert run("delete", APP, "jobs.purge") == "jobs.purge is deleted.\n"
    assert "every 300 s" in row("jobs.purge")


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (["pause", APP, "none"], NotFoundError, "Schedule none was not found"),
        (["next", APP, "none"], NotFoundError, "Schedule none was not found"),
        (["put", APP, "x", "{"], ValidationError, "no JSON"),
        (["put", APP, "x", "[]"], ValidationError, "JSON object"),
        (["put", APP, "x", '{"task": "none", "every_seconds": 5}'], ValidationError, "no task none"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(arguments: list[str], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
