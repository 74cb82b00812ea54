"""Serves apps, each by one uvicorn process on the first core, and loads them in turn from the last."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.load import Load, load

ROOT = Path(__file__).parent.parent
PATH = "/items/7"
CONNECTIONS = 32
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""Those that this process may use, before it has chosen one."""


@dataclass(frozen=True)
class Contender:
    """An app and how it is served; all share the event loop, the parser of HTTP and the level of uvicorn's own log."""

    app: str
    access_log: bool = False
    """uvicorn's own access log; ours is switched on and off by the app."""
    factory: bool = False
    """`app` is a function that makes it."""
    python: str = sys.executable


@contextmanager
def served(contender: Contender) -> Iterator[tuple[int, int]]:
    """Serve an app in production's environment; yields its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [contender.python, "-m", "uvicorn", contender.app, "--port", str(port), "--loop", "uvloop"]
    command += ["--http", "httptools", "--log-level", "info" if contender.access_log else "warning"]
    command += ["--access-log" if contender.access_log else "--no-access-log"]
    command += ["--factory"] if contender.factory else []
    environment = {**os.environ, "APP_ENV": "prod", "EDGE_DRAIN_DELAY_SECONDS": "0"}
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below; logs go where they would go in production, to a file
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        _pin(process.pid, first=True)
        _wait(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def compared(contenders: Mapping[str, Contender], *, base: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Load the apps in turn; ratios to the base are taken within a round, and the median of them is told.

    Args:
        contenders: By name.
        base: The name of the one that the others are compared with.
        rounds: How often; one more warms up.
        seconds: How long an app is loaded in a round.
    """
    seen: dict[str, list[Load]] = {name: [] for name in contenders}
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        places = {name: stack.enter_context(served(contender)) for name, contender in contenders.items()}
        _pin(0, first=False)
        for number in range(rounds + 1):
            for name, (port, pid) in places.items():
                before = _cpu_seconds(pid)
                one = uvloop.run(load(port, PATH, connections=CONNECTIONS, seconds=seconds))
                if one.errors:
                    raise SystemExit(f"{name}: {one.errors} answers were not 200")
                if number:
                    seen[name].append(one)
                    spent[name].append((_cpu_seconds(pid) - before) / one.requests * 1e6)
    return [_row(name, seen[name], seen[base], spent[name]) for name in contenders]


def memory(contender: Contender, requests: int) -> float:
    """The resident memory of a fresh process after so many requests, in MB."""
    with served(contender) as (port, pid):
        answered = 0
        while answered < requests:
            answered += uvloop.run(load(port, PATH, connections=CONNECTIONS, seconds=0.2)).requests
        return resident_bytes(pid) / 1e6


def resident_bytes(pid: int) -> int:
    """The resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _row(name: str, own: list[Load], base: list[Load], spent: list[float]) -> dict[str, Any]:
    return {
        "app": name,
        "requests/s": statistics.median(one.per_second for one in own),
        "p50 ms": statistics.median(one.p50_ms for one in own),
        "p99 ms": statistics.median(one.p99_ms for one in own),
        "cpu us": statistics.median(spent),
        "requests/s, ratio": statistics.median(a.per_second / b.per_second for a, b in zip(own, base, strict=True)),
        "p99, ratio": statistics.median(a.p99_ms / b.p99_ms for a, b in zip(own, base, strict=True)),
    }


def _pin(pid: int, *, first: bool) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, {min(CORES) if first else max(CORES)})


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"the server on port {port} did not start")
