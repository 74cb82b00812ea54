"""`svc-infra demo --tour`: a real service, driven from outside by a real client, on each set of engines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = 18


def _tour(*options: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SQL_", "REDIS_", "JOBS_"))}
    command = [sys.executable, "-m", "svc_infra.cli", "demo", "--tour", *options]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("engines", ["embedded", "postgres and valkey"])
def test_every_step_of_the_tour_succeeds(engines: str, request: pytest.FixtureRequest) -> None:
    options: list[str] = []
    if engines != "embedded":
        options += ["--sql-url", request.getfixturevalue("postgres_url")]
        options += ["--redis-url", request.getfixturevalue("valkey_url")]
    done = _tour(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == STEPS, done.stdout
    assert "✗" not in done.stdout


def test_a_tour_that_fails_says_where_and_why_and_exits_non_zero() -> None:
    done = _tour("--sql-url", "postgresql://nobody:hunter2@127.0.0.1:9/nothing")
    assert done.returncode == 1
    assert done.stdout.startswith("✗  start the service")
    assert "cannot be reached" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
