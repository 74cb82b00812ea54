"""Rolling restarts of a service of two workers under constant load: how many requests fail.

The service is `uvicorn --workers 2`, whose parent holds the listening socket that the workers inherit; SIGHUP makes it
replace one worker after the other. The clients use a connection for several requests, as long as the service lets them,
and try nothing twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import table, write

ROOT = Path(__file__).parent.parent
WORKERS = 2
PAUSE_SECONDS = 0.002
REQUESTS_PER_CONNECTION = 20
PATIENCE_SECONDS = 60.0


@dataclass
class Rolled:
    """What the clients saw."""

    restarts: int = 0
    requests: int = 0
    connections: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    last_seen: dict[int, float] = field(default_factory=dict)
    """When each worker has last answered, by its process id."""


@contextmanager
def service() -> Iterator[tuple[int, int]]:
    """Serve `bench.http_apps:rolling_app`; yields its port and the parent's process id."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        command = [sys.executable, "-m", "uvicorn", "bench.http_apps:rolling_app", "--workers", str(WORKERS)]
        command += ["--fd", str(listener.fileno()), "--timeout-worker-healthcheck", "60", "--log-level", "warning"]
        environment = {**os.environ, "APP_ENV": "test", "EDGE_DRAIN_DELAY_SECONDS": "0", "LOG_LEVEL": "WARNING"}
        process = subprocess.Popen(command, env=environment, cwd=ROOT, pass_fds=[listener.fileno()])
        port = int(listener.getsockname()[1])
    try:
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)


async def roll(restarts: int, *, clients: int = 4) -> Rolled:
    """Restart the service as often while these clients use it.

    Args:
        restarts: How often both workers are replaced.
        clients: Connections at once.
    """
    rolled = Rolled()
    with service() as (port, parent):
        await _until_served_by(set(), port, rolled)
        rolled.requests, rolled.slowest_seconds = 0, 0.0  # starting is no restart
        stop = asyncio.Event()
        tasks = [asyncio.create_task(_client(port, rolled, stop)) for _ in range(clients)]
        try:
            for _ in range(restarts):
                before = set(rolled.last_seen)
                os.kill(parent, signal.SIGHUP)
                await _until_served_by(before, port, rolled)
                rolled.restarts += 1
        finally:
            stop.set()
            await asyncio.gather(*tasks)
    return rolled


async def _until_served_by(before: set[int], port: int, rolled: Rolled) -> None:
    """Wait until all workers are other ones than these, and these are gone."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(set(rolled.last_seen) - before) < WORKERS or any(map(_is_alive, before)):
            if not before:
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    await _ask_once(port, rolled)
            await asyncio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _ask_once(port: int, rolled: Rolled) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _ask(reader, writer, rolled)
    finally:
        writer.close()


async def _client(port: int, rolled: Rolled, stop: asyncio.Event) -> None:
    while not stop.is_set():
        writer: StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            rolled.connections += 1
            for _ in range(REQUESTS_PER_CONNECTION):
                if stop.is_set() or not await _ask(reader, writer, rolled):
                    break
                await asyncio.sleep(PAUSE_SECONDS)
        except (OSError, asyncio.IncompleteReadError) as error:
            rolled.failures.append(repr(error))
        finally:
            if writer is not None:
                writer.close()


async def _ask(reader: StreamReader, writer: StreamWriter, rolled: Rolled) -> bool:
    """One request; says whether the connection may be used again."""
    started = time.perf_counter()
    rolled.requests += 1
    writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].split(b"\r", 1)[0])
    body = await reader.readexactly(length)
    if head.startswith(b"http/1.1 200 "):
        rolled.last_seen[int(body)] = time.monotonic()
    else:
        rolled.failures.append(head.decode().partition("\r")[0])
    rolled.slowest_seconds = max(rolled.slowest_seconds, time.perf_counter() - started)
    return b"connection: close" not in head


def main() -> None:
    """Restart, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--restarts", type=int, default=200)
    options.add_argument("--clients", type=int, default=4)
    given = options.parse_args()
    seen = asyncio.run(roll(given.restarts, clients=given.clients))
    row = {
        "restarts": seen.restarts,
        "requests": seen.requests,
        "connections": seen.connections,
        "failed": len(seen.failures),
        "slowest ms": seen.slowest_seconds * 1000,
    }
    table(f"rolling restarts of {WORKERS} workers, {given.clients} clients", [row])
    write("restarts", [row], ("uvicorn", "svc-infra"))
    if seen.failures:
        raise SystemExit("\n".join(seen.failures[:20]))


if __name__ == "__main__":
    main()
