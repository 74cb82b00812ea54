"""`svc-infra flows`, as a person runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svc_infra.cli.flows import app
from svc_infra.db import AsyncDatabase
from svc_infra.db.sql.migrate import upgrade
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs import SqlJobQueue
from svc_infra.jobs.flows import Batch, Flows, Workflow
from tests.jobs.flows.flows_app import pack

APP = "tests.jobs.flows.flows_app:make"


@pytest.fixture(autouse=True)
def environment(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The app's own environment: an empty SQLite file."""
    monkeypatch.setenv("APP_ENV", "test")
    monkeypatch.setenv("SQL_URL", sqlite_url)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(Path(__file__).parents[2])
    return sqlite_url


def started(url: str, *plans: Workflow | Batch) -> None:
    """Start flows, each under its name."""

    async def start() -> None:
        db = AsyncDatabase(url)
        try:
            await upgrade(db)
            for plan in plans:
                await plan.start(flow_id=plan.name, on=Flows(SqlJobQueue(db), db))
        finally:
            await db.dispose()

    asyncio.run(start())


def order() -> Workflow:
    flow = Workflow("order")
    flow.add(pack, {"parcel": 2}, name="second", after=[flow.add(pack, {"parcel": 1}, name="first")])
    return flow


def run(*arguments: str) -> str:
    """Run a command that succeeds; what it printed."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_shows_the_flows_and_filters_them(environment: str) -> None:
    started(environment, order(), Batch("empty"))
    everything = run("list", APP)
    assert everything.index("empty") < everything.index("order")
    assert "0/2" in everything
    assert "order" not in run("list", APP, "--state", "succeeded")
    assert "empty" not in run("list", APP, "--name", "order")


def test_show_draws_the_steps_with_their_states(environment: str) -> None:
    started(environment, order())
    printed = run("show", APP, "order")
    (first,) = [line.split() for line in printed.splitlines() if line.strip().startswith("first ")]
    (second,) = [line.split() for line in printed.splitlines() if line.strip().startswith("second ")]
    assert first[1:] == ["pack", "enqueued", "flow:order:first:1"]
    assert second[1:] == ["pack", "waiting", "first"]
    assert "second" not in run("show", APP, "order", "--state", "enqueued")
    with pytest.raises(NotFoundError):
        run("show", APP, "nothing")


def test_flows_are_cancelled_and_begun_again(environment: str) -> None:
    started(environment, order())
    with pytest.raises(ConflictError):
        run("retry", APP, "order")
    assert run("cancel", APP, "order") == "Flow order is cancelled.\n"
    assert run("show", APP, "order").count(" cancelled ") >= 3
    assert run("retry", APP, "order") == "Flow order goes on.\n"
    assert "flow:order:first:2" in run("show", APP, "order")


def test_an_app_without_flows_is_told_what_to_call() -> None:
    with pytest.raises(ConfigurationError, match="add_flows"):
        run("list", "tests.jobs.effects_app:make")
