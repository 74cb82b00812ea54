"""`svc-infra config`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from svc_infra.cli.app import commands
from svc_infra.config import Settings, list_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables but these, and a `.env` file."""
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQL_URL", "postgresql://u:s3cr3t@[::1]/shop")
    monkeypatch.setenv("AUTH_SECRET", "s3cr3t" * 8)
    monkeypatch.setenv("JOBS_DRIVE", "sql")
    Path(tmp_path, ".env").write_text("APP_NAME=[bold]shop[/bold]\n")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(commands(), ["config", *arguments], catch_exceptions=False)


def test_the_table_shows_value_variable_and_source_of_each_setting() -> None:
    lines = {line.split()[0]: line.split()[1:] for line in _run().stdout.splitlines() if line.strip()}
    assert lines["sql.url"] == ["postgresql://u:***@[::1]/shop", "SQL_URL", "environment", "variable"]
    assert lines["app.name"] == ["[bold]shop[/bold]", "APP_NAME", ".env"]
    assert lines["sql.pool_size"] == ["10", "SQL_POOL_SIZE", "default"]
    assert lines["auth.secret"] == ["********", "AUTH_SECRET", "environment", "variable"]
    assert {setting.name for setting in list_settings(Settings())} <= lines.keys()


def test_json_holds_the_same(tmp_path: Path) -> None:
    listed = {line["name"]: line for line in json.loads(_run("--json").stdout)}
    assert listed["sql.url"] == {
        "name": "sql.url",
        "value": "postgresql://u:***@[::1]/shop",
        "variable": "SQL_URL",
        "source": "environment variable",
    }
    assert len(listed) == len(list_settings(Settings()))


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_likely_typo_is_a_warning_beside_the_output(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.exit_code == 0
    assert done.stderr == "warning: JOBS_DRIVE is no setting: did you mean JOBS_DRIVER?\n"


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_no_secret_is_printed(arguments: tuple[str, ...]) -> None:
    assert "s3cr3t" not in _run(*arguments).output
