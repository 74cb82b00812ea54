"""`svc-infra demo`, as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from svc_infra.cli.app import REFUSED, UNAVAILABLE

COMMAND = [sys.executable, "-m", "svc_infra.cli", "demo"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No settings of the machine's own, and the current folder somewhere else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SQL_", "REDIS_", "JOBS_"))}
    return {**kept, "APP_ENV": "local"}


def test_the_demo_prints_where_it_is_and_a_login_that_works(environment: dict[str, str], tmp_path: Path) -> None:
    command = [*COMMAND, "--port", "0"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            shown = ""
            while "stop with" not in shown:
                line = process.stdout.readline()
                assert line, f"the demo ended: {shown}"
                shown += line
            url, email, password, tenant = (
                match[1]
                for match in (
                    re.search(pattern, shown)
                    for pattern in (r"is at (\S+)", r"log in as +(\S+)", r"password (\S+)", r"X-Tenant-Id: (\S+)")
                )
                if match
            )
            with httpx2.Client(base_url=url, trust_env=False) as client:
                tokens = client.post("/auth/login", json={"email": email, "password": password}).json()
                headers = {"Authorization": f"Bearer {tokens['access_token']}", "X-Tenant-Id": tenant}
                assert [project["name"] for project in client.get("/projects", headers=headers).json()] == ["Website"]
                for page in ("/", "/docs", "/redoc", "/_ops/ready", "/metrics"):
                    assert client.get(page).status_code == 200, page
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "var" / "tracker.db").exists()


@pytest.mark.parametrize(
    ("options", "settings", "told"),
    [
        (["--sql-url", "postgresql://user:hunter2@127.0.0.1:9/x"], {}, "cannot be reached"),
        (["--sql-url", "oracle://x"], {}, "sqlite"),
        ([], {"SQL_POOL_SIZE": "many"}, "SQL_POOL_SIZE"),
        ([], {"APP_ENV": "moon"}, "APP_ENV"),
        ([], {"APP_ENV": "prod"}, "svc-infra sql upgrade"),
        (["--redis-url", "http://x"], {}, "REDIS_URL"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(
    options: list[str], settings: dict[str, str], told: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, *options], env={**environment, **settings}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == (UNAVAILABLE if told == "cannot be reached" else REFUSED), done.stderr
    assert len(errors) == 1, done.stderr
    assert told in errors[0]
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_a_taken_port_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: Port {port} is taken: choose another with --port."
