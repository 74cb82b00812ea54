"""What the default stack costs: the same route on bare Starlette, bare FastAPI and easy_service_app, side by side.

Once in this process, where nothing but the app is measured (processor time, so that other processes do not count); once
through uvicorn, where each server is one process on the first core and the load comes from this one on the last. Rounds
are interleaved, so a slow minute of the machine hits all alike; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from importlib import import_module
from unittest.mock import patch

import uvloop
from starlette.types import ASGIApp, Message, Scope

from bench.load import Load, load
from bench.report import table, write

APPS = ("starlette", "fastapi", "svc_infra")
CALLS = 1000


@contextmanager
def served(name: str) -> Iterator[int]:
    """Serve one app of `bench.http_apps`; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"bench.http_apps:{name}_app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    environment = {**os.environ, "APP_ENV": "prod", "EDGE_DRAIN_DELAY_SECONDS": "0"}
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below; logs go where they would go in production, to a file
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"the server on port {port} did not start")


def in_process(rounds: int) -> list[dict[str, object]]:
    """Call each app without a server; access lines go where they would go in production, to a file."""
    microseconds: dict[str, list[float]] = {name: [] for name in APPS}
    with tempfile.TemporaryFile("w") as log, redirect_stderr(log), patch.dict(os.environ, APP_ENV="prod"):
        module = import_module("bench.http_apps")
        for _ in range(rounds + 1):
            for name in APPS:
                microseconds[name].append(uvloop.run(_called(getattr(module, f"{name}_app"))))
        logging.shutdown()
    best = {name: min(seen[1:]) for name, seen in microseconds.items()}  # the first round only warms up
    return [{"app": name, "us": best[name], "over fastapi": best[name] - best["fastapi"]} for name in APPS]


async def _called(app: ASGIApp) -> float:
    headers = [(b"host", b"bench"), (b"accept", b"*/*"), (b"user-agent", b"bench")]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/items/7",
        "raw_path": b"/items/7",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    started = time.process_time()
    for _ in range(CALLS):
        await app({**scope, "state": {}}, receive, send)
    return (time.process_time() - started) / CALLS * 1e6


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--connections", type=int, default=32)
    given = options.parse_args()
    called = in_process(given.rounds)
    table(f"GET /items/7 in process, best of {given.rounds} interleaved rounds", called)
    rounds: dict[str, list[Load]] = {name: [] for name in APPS}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(served(name)) for name in APPS}
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for number in range(given.rounds + 1):
            for name in APPS:
                seconds = 1.0 if number == 0 else given.seconds
                seen = uvloop.run(load(ports[name], "/items/7", connections=given.connections, seconds=seconds))
                if seen.errors:
                    raise SystemExit(f"{name}: {seen.errors} answers were not 200")
                if number:  # the first round only warms up
                    rounds[name].append(seen)
    rows = [_row(name, rounds[name], rounds["fastapi"]) for name in APPS]
    table(f"GET /items/7, {given.connections} connections, median of {given.rounds} interleaved rounds", rows)
    for row, inside in zip(rows, called, strict=True):
        row.update({f"in process, {column}": value for column, value in inside.items() if column != "app"})
    write("http", rows, ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "svc-infra"))


def _row(name: str, own: list[Load], bare: list[Load]) -> dict[str, object]:
    return {
        "app": name,
        "requests/s": statistics.median(one.per_second for one in own),
        "p50 ms": statistics.median(one.p50_ms for one in own),
        "p99 ms": statistics.median(one.p99_ms for one in own),
        "req/s vs fastapi": statistics.median(a.per_second / b.per_second for a, b in zip(own, bare, strict=True)),
        "p99 vs fastapi": statistics.median(a.p99_ms / b.p99_ms for a, b in zip(own, bare, strict=True)),
    }


if __name__ == "__main__":
    main()
