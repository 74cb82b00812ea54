"""Several workers count as one, whoever of them is asked and however they end."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

import httpx2
import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from svc_infra.config import MetricsSettings, Settings
from svc_infra.errors import ConfigurationError
from svc_infra.obs import cells
from svc_infra.obs.add import add_observability
from svc_infra.obs.cells import CellFile, Cells, read_cells
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.series import MAX_SERIES, OTHER
from svc_infra.obs.workers import Workers, _meeting_place, joined
from svc_infra.wiring import wiring_of
from tests.obs.test_add import labels, scrape

WAIT_SECONDS = 60.0
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), timeout=WAIT_SECONDS)
SERVICE = """
import asyncio, os
from svc_infra import create_app
from svc_infra.observability import metrics

app = create_app(name="shop")

@app.get("/ping")
async def ping() -> int:
    metrics.increment("pings", plan="pro")
    metrics.gauge("depth", os.getpid())
    return os.getpid()

@app.get("/hang")
async def hang() -> None:
    await asyncio.sleep(3600)
"""

Samples = list[tuple[str, dict[str, str], float]]


@dataclass
class Service:
    """A running service of several workers."""

    url: str
    folder: Path

    def ping(self, times: int) -> set[int]:
        """Who has answered so many requests; each on a connection of its own, so that any worker may."""
        return {int(CLIENT.get(f"{self.url}/ping").text) for _ in range(times)}

    def ping_all(self, workers: int) -> tuple[set[int], int]:
        """Who they are, once each has answered (they begin one after the other), and how many requests that took."""
        sent, pids, until = 0, set[int](), monotonic() + WAIT_SECONDS
        while len(pids) < workers and monotonic() < until:
            pids |= self.ping(10)
            sent += 10
        assert len(pids) == workers
        return pids, sent

    def samples(self) -> Samples:
        families = text_string_to_metric_families(CLIENT.get(f"{self.url}/metrics").text)
        return [(one.name, one.labels, one.value) for family in families for one in family.samples]

    def total(self, name: str, **wanted: str) -> float:
        return sum(value for one, found, value in self.samples() if one == name and wanted.items() <= found.items())

    def wait_for_total(self, expected: float, name: str, **wanted: str) -> None:
        """An answer is counted a moment after its last byte has arrived."""
        until = monotonic() + WAIT_SECONDS
        while (found := self.total(name, **wanted)) < expected and monotonic() < until:
            pass
        assert found == expected


@contextmanager
def service(tmp_path: Path, workers: int) -> Iterator[Service]:
    (tmp_path / "shop.py").write_text(SERVICE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--app-dir", str(tmp_path), "--port", "0"]
    own = {**os.environ, "TMPDIR": str(temporary), "APP_ENV": "prod"}
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen([*command, "--workers", str(workers)], env=own, cwd=tmp_path, stderr=errors)
    try:
        until, begun = monotonic() + WAIT_SECONDS, None
        while begun is None and monotonic() < until:
            begun = re.search(r"running on (http://[\d.:]+)", log.read_text())
        assert begun is not None, log.read_text()
        while not _answers(begun[1]) and monotonic() < until:
            assert process.poll() is None, log.read_text()
        yield Service(begun[1], temporary)
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def _answers(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/_ops/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_workers_count_as_one_also_when_one_of_them_is_killed(tmp_path: Path) -> None:
    with service(tmp_path, workers=3) as shop:
        requests: dict[str, str] = {"route": "/ping", "code": "200"}
        pids, sent = shop.ping_all(3)
        until = monotonic() + WAIT_SECONDS
        for _ in range(9):  # whoever answers
            shop.wait_for_total(sent, "http_server_requests_total", **requests)
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        born: set[int] = set()
        while not born and monotonic() < until:
            born = shop.ping(10) - pids - {victim}
            sent += 10
        assert born
        for _ in range(9):
            shop.wait_for_total(sent, "http_server_requests_total", **requests)
            shop.wait_for_total(sent, "http_server_request_duration_seconds_count", route="/ping")
            shop.wait_for_total(sent, "pings_total", plan="pro")
        gauges = {found["pid"]: value for name, found, value in shop.samples() if name == "depth"}
        assert {int(pid) for pid in gauges} == pids | born
        assert all(int(pid) == value for pid, value in gauges.items())
        memory = [found["pid"] for name, found, _ in shop.samples() if name == "process_resident_memory_bytes"]
        assert len(memory) == len(set(memory)) == 3
        assert str(victim) not in memory
        files = sorted(file.name.partition("-")[0] for file in shop.folder.rglob("*.cells"))
        assert files == sorted([*map(str, pids | born), "ended.cells"])


def test_a_killed_worker_takes_its_requests_in_flight_with_it(tmp_path: Path) -> None:
    with service(tmp_path, workers=2) as shop, ThreadPoolExecutor(1) as threads:
        before, sent = shop.ping_all(2)
        hanging = threads.submit(CLIENT.get, f"{shop.url}/hang")
        shop.wait_for_total(1, "http_server_inflight_requests")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):
            hanging.result()
        until = monotonic() + WAIT_SECONDS
        while not _answers(shop.url) and monotonic() < until:
            pass
        assert shop.total("http_server_inflight_requests") == 0
        shop.wait_for_total(sent, "http_server_requests_total", route="/ping")


def work(pipe: Connection, folder: str, number: int) -> None:
    """A worker that does what it is told; then it is killed."""
    metrics = Metrics()
    Counter("foreign", "Another library's.", ["kind"], registry=metrics.registry).labels("a").inc(number)
    Gauge("foreign_level", "Another library's.", registry=metrics.registry).set(number)
    Histogram("foreign_wait", "Another library's.", buckets=(1, 2), registry=metrics.registry).observe(1.5)
    workers = Workers(metrics, Path(folder))
    for key in range(number):
        metrics.increment("done", key=key)
        metrics.observe("work_seconds", 0.02)
    list(workers.totals().metrics())
    pipe.send("done")
    pipe.recv()


@contextmanager
def worker(folder: Path, number: int) -> Iterator[multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, str(folder), number))
    process.start()
    try:
        assert ours.poll(WAIT_SECONDS)
        ours.recv()
        yield process
    finally:
        process.kill()
        process.join()


def found(workers: Workers) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in workers.totals().metrics()
        for sample in metric.samples
    }


def test_what_the_dead_have_counted_stays_and_what_they_were_goes(tmp_path: Path) -> None:
    mine = Workers(Metrics(), tmp_path / "shop")
    with worker(tmp_path / "shop", 3) as first:
        alive = found(mine)
    assert alive["foreign_level", labels(pid=str(first.pid))] == 3
    with worker(tmp_path / "shop", 5) as second:
        pass
    for _ in range(3):
        dead = found(mine)
        assert dead["done_total", labels(key="1")] == 2
        assert dead["done_total", labels(key="4")] == 1
        assert dead["work_seconds_count", ()] == 8
        assert dead["work_seconds_sum", ()] == pytest.approx(0.16)
        assert dead["work_seconds_bucket", labels(le="0.025")] == 8
        assert dead["foreign_total", labels(kind="a")] == 8
        assert dead["foreign_wait_bucket", labels(le="2.0")] == 2
        assert not [name for name, pairs in dead if ("pid", str(second.pid)) in pairs]
    assert len(list((tmp_path / "shop-0").glob("*.cells"))) == 2
    mine.leave()


def test_a_worker_that_was_killed_over_the_burial_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Workers(Metrics(), tmp_path / "shop")
    with worker(tmp_path / "shop", 4):
        pass
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Path, "unlink", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        found(mine)
    (tmp_path / "shop-0" / "ended.draft").write_bytes(b"half")
    assert len(list((tmp_path / "shop-0").glob("*.cells"))) == 3
    for _ in range(2):
        assert found(mine)["work_seconds_count", ()] == 4
    assert len(list((tmp_path / "shop-0").iterdir())) == 3  # this worker, those that ended, the lock
    mine.leave()


def test_many_dead_workers_open_no_more_series_than_one_may(tmp_path: Path) -> None:
    for life in range(4):
        metrics = Metrics()
        workers = Workers(metrics, tmp_path / "shop")
        for number in range(600):
            metrics.increment("hits", user=f"{life}-{number}")
        workers.leave()
    last = Workers(Metrics(), tmp_path / "shop")
    hits = {pairs: value for (name, pairs), value in found(last).items() if name == "hits_total"}
    assert (len(hits), sum(hits.values())) == (MAX_SERIES, 2400)
    assert hits[labels(user=OTHER)] == 2400 - MAX_SERIES + 1
    last.leave()


def test_two_apps_of_one_process_do_not_share(tmp_path: Path) -> None:
    first, second = Metrics(), Metrics()
    ours, theirs = Workers(first, tmp_path / "shop"), Workers(second, tmp_path / "shop")
    first.increment("orders")
    assert found(ours)["orders_total", ()] == 1
    assert ("orders_total", ()) not in found(theirs)
    ours.leave()
    theirs.leave()


async def test_a_folder_that_was_named_is_used_by_a_single_process_too(tmp_path: Path) -> None:
    settings = Settings(metrics=MetricsSettings(dir=str(tmp_path)))
    for life in range(1, 4):
        app = Starlette()
        wiring = wiring_of(app, settings=settings)
        add_observability(app)
        wiring.get(Metrics).increment("before.the.start")
        async with wiring.running():
            wiring.get(Metrics).increment("orders.created")
            samples = await scrape(app)
            assert samples["orders_created_total", ()] == life
            assert samples["before_the_start_total", ()] == life
            assert samples["process_resident_memory_bytes", labels(pid=str(os.getpid()))] > 0
        wiring.get(Metrics).increment("orders.created")
        assert wiring.get(Metrics).registry.get_sample_value("orders_created_total") == 2


def test_a_folder_that_cannot_be_used_is_an_error_where_it_was_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="METRICS_DIR cannot be used: Not a directory"):
        joined(Metrics(), service="shop", folder=tmp_path / "file")
    assert joined(Metrics(), service="shop", folder=None) is None


def test_where_a_file_is_full_the_worker_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_FILE_BYTES", cells.SEGMENT_BYTES)
    metrics = Metrics(max_series=100_000)
    workers = Workers(metrics, tmp_path / "shop")
    for number in range(5000):
        metrics.increment("hits", user="x" * 100 + str(number))
    assert metrics.cells.unshared > 1000
    assert sum(value for name, value in _own(metrics) if name == "hits_total") == 5000
    workers.leave()
    assert sum(value for name, value in _own(metrics) if name == "hits_total") == 5000


def test_numbers_survive_a_move_and_are_read_as_they_were_written(tmp_path: Path) -> None:
    ours = Cells()
    blocks = {f"key-{number}".encode(): ours.block(f"key-{number}".encode(), number % 7) for number in range(9000)}
    for number, block in enumerate(blocks.values()):
        for index in range(number % 7):
            block.numbers[index] += number + index / 8
    ours.share(CellFile(tmp_path / "a.cells"))
    blocks[b"key-8"].numbers[0] += 1
    expected = {key: tuple(block.numbers) for key, block in blocks.items()}
    assert expected[b"key-8"] == (9.0,)
    assert dict(read_cells(tmp_path / "a.cells")) == expected
    assert (tmp_path / "a.cells").stat().st_size > cells.SEGMENT_BYTES
    ours.unshare()
    assert {key: tuple(block.numbers) for key, block in blocks.items()} == expected


def test_the_child_of_a_fork_begins_at_zero_and_changes_nothing_of_its_parent(tmp_path: Path) -> None:
    metrics = Metrics()
    workers = Workers(metrics, tmp_path / "shop")
    metrics.increment("orders")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        metrics.increment("orders", 5)
        os.write(writing, str(metrics.registry.get_sample_value("orders_total")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"5.0"
    assert found(workers)["orders_total", ()] == 1
    workers.leave()


def _own(metrics: Metrics) -> list[tuple[str, float]]:
    return [(sample.name, sample.value) for family in metrics.registry.collect() for sample in family.samples]


def test_what_parents_that_are_gone_have_left_is_removed_unless_a_worker_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another container, with which only the folder for temporary files is shared, the parent cannot be seen."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    _meeting_place("1")  # makes the root
    (root,) = tmp_path.iterdir()
    elsewhere, left = root / "999999999-a" / "shop-0", root / "999999998-b" / "shop-0"
    files = []
    for folder in (elsewhere, left):
        folder.mkdir(parents=True)
        files.append(CellFile(folder / "7-x.cells"))
    flock(files[0].descriptor, LOCK_EX)
    _meeting_place("1")
    assert (elsewhere.exists(), left.parent.exists()) == (True, False)
    for file in files:
        file.close()
