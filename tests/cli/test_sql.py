"""`svc-infra sql`, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svc_infra.cli.app import REFUSED, UNAVAILABLE

CHAIN = [
    "0001_outbox",
    "0002_security",
    "0003_jobs",
    "0004_webhooks",
    "0005_idempotency",
    "0006_jobs",
    "0008_schedules",
    "0009_flows",
    "0010_audit",
    "0011_accounts",
    "0015_api_keys",
    "0016_organizations",
    "0017_oauth",
    "0018_mfa",
    "0019_admin",
    "0020_key_rates",
    "0021_searches",
]


def run(*words: str, sql_url: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ["PYTHONPATH"] if name in os.environ}
    environment |= {"SQL_URL": sql_url} if sql_url else {}
    return subprocess.run(
        [sys.executable, "-m", "svc_infra.cli", "sql", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=cwd,
    )


def test_upgrade_brings_an_empty_database_up_to_date(sqlite_url: str) -> None:
    before = run("pending", sql_url=sqlite_url)
    assert (before.returncode, before.stdout.split()) == (2, CHAIN)
    upgraded = run("upgrade", sql_url=sqlite_url)
    assert (upgraded.returncode, upgraded.stderr) == (0, "")
    assert upgraded.stdout.splitlines() == [f"applied {revision}" for revision in CHAIN]
    assert run("upgrade", sql_url=sqlite_url).stdout == "The schema is up to date.\n"
    assert run("current", sql_url=sqlite_url).stdout.split() == CHAIN[-1:]
    after = run("pending", sql_url=sqlite_url)
    assert (after.returncode, after.stdout) == (0, "")


def test_the_options_name_another_database_and_the_applications_own_revisions(
    postgres_url: str, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "0001_orders.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision = '0001_orders'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('orders', sa.Column('id', sa.Integer))\n"
    )
    upgraded = run("upgrade", "--url", postgres_url, "--migrations", str(own), sql_url="sqlite:////nowhere/x.db")
    assert upgraded.stdout.split()[-1] == "0001_orders"
    assert run("current", "--url", postgres_url, "--migrations", str(own)).stdout.split() == [CHAIN[-1], "0001_orders"]


@pytest.mark.parametrize("command", ["upgrade", "current", "pending"])
@pytest.mark.parametrize(
    ("url", "complaint", "status"),
    [
        ("postgresql://app:hunter2@127.0.0.1:1/shop", "cannot be reached", UNAVAILABLE),
        ("sqlite:////proc/nowhere/app.db", "check SQL_URL", REFUSED),
        ("oracle://app:hunter2@db/shop", "no database that svc-infra speaks", REFUSED),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_and_an_exit_code(
    command: str, url: str, complaint: str, status: int
) -> None:
    result = run(command, "--url", url)
    assert result.returncode == status
    assert result.stdout == ""
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.stderr


def test_a_folder_that_is_not_there_is_one_line_and_exit_code_2(sqlite_url: str, tmp_path: Path) -> None:
    result = run("upgrade", "--migrations", str(tmp_path / "nowhere"), sql_url=sqlite_url)
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert len(result.stderr.splitlines()) == 1
