"""Workers that are killed and stopped, on a queue that is killed and blocked, while jobs keep coming."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from svc_infra.cli.app import UNAVAILABLE
from svc_infra.errors import SvcInfraError
from svc_infra.jobs import Job, JobRequest, JobState
from tests.chaos.chaos_app import FOLDER
from tests.chaos.history import Event, History
from tests.chaos.places import LEASE_SECONDS, OUTAGE_SECONDS, Fault, Place

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "svc_infra.cli", "jobs", "run", "tests.chaos.chaos_app:make"]
ENVIRONMENT = {
    **os.environ,
    "APP_ENV": "test",
    "JOBS_DRIVER": "auto",
    "JOBS_LEASE_SECONDS": str(LEASE_SECONDS),
    "JOBS_POLL_INTERVAL_SECONDS": "0.05",
    "LOG_LEVEL": "CRITICAL",
}
WORKERS = 2
LOOKS = 300
BATCH_JOBS = 20
STORM_JOBS = 2000
"""In so many jobs everything goes wrong once."""
AS_THEY_ARE: dict[str, Any] = {"name": "chaos", "max_attempts": 3, "backoff_seconds": 0.05}
SMALL_POOL = {"SQL_POOL_SIZE": "2", "SQL_MAX_OVERFLOW": "0"}
"""Of every other worker: fewer connections than the jobs that it runs at once, so that they wait for each other."""


class Storm:
    """The processes of one test, and what it does to them.

    Args:
        place: Where the jobs are.
        folder: Where the histories are.
        seed: Of every choice.
    """

    def __init__(self, place: Place, folder: Path, seed: int) -> None:
        self.place = place
        self.folder = folder
        self.seed = seed
        self.chance = random.Random(seed)
        self.log: list[str] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._history = History(folder)
        self._stored = 0  # as far as the queue has answered
        self._ended = 0

    @asynccontextmanager
    async def workers(self) -> AsyncIterator[None]:
        """Run workers for as long as the block does; then they stop by themselves when they are asked to."""
        keeping = asyncio.create_task(self._keep())
        try:
            for number in range(WORKERS):
                self._start(number)
            yield
            keeping.cancel()
            for worker in self._workers:
                worker.terminate()
            ends = [await asyncio.to_thread(worker.wait, 30) for worker in self._workers]
            assert set(ends) <= {0, UNAVAILABLE, -signal.SIGTERM}, ends  # the last: asked before it had begun
        finally:
            keeping.cancel()
            for worker in self._workers:
                worker.kill()
                worker.wait()
            self._history.close()

    async def produce(self, count: int) -> list[str]:
        """Store so many jobs, whatever it takes; their ids."""
        numbers = range(self._stored, self._stored + count)
        for first in numbers[::BATCH_JOBS]:
            batch = [one for one in numbers if first <= one < first + BATCH_JOBS]
            requests = [JobRequest(job_id=f"{one:06}", payload={"number": one}, **AS_THEY_ARE) for one in batch]
            while True:
                try:
                    await self.place.store(requests)  # a second time changes nothing
                    break
                except SvcInfraError:
                    await asyncio.sleep(0.05)
            self._history.note(*(Event("stored", str(request.job_id)) for request in requests))
            self._stored += len(batch)
        return [f"{one:06}" for one in numbers]

    async def rage(self, count: int) -> None:
        """Let everything go wrong in any order, each when workers have come so far in these jobs, drawn by lot."""
        faults = {**self.place.faults(), "kill": self._kill, "stop": self._stop, "kill again": self._kill}
        before = await self._done()
        rounds = max(1, count // STORM_JOBS)
        names = [name for _ in range(rounds) for name in self.chance.sample(list(faults), len(faults))]
        points = sorted(self.chance.sample(range(count // 50, count - count // 20), len(names)))
        for point, name in zip(points, names, strict=True):
            while await self._done() < before + point:
                await asyncio.sleep(0.02)
            await self._do(name, faults[name])

    async def settled(self) -> float:
        """Wait until nothing waits or runs any more; when that was."""
        while await self._done() < self._stored:
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def rate(self, count: int) -> float:
        """How many jobs a second are stored and done while nothing goes wrong."""
        began = time.monotonic()
        await self.produce(count)
        return count / (await self.settled() - began)

    async def kept(self) -> dict[str, Job]:
        """All jobs that the queue still has."""
        jobs: dict[str, Job] = {}
        before = None
        while page := await self.place.queue.list(limit=1000, before=before):
            jobs.update((job.id, job) for job in page)
            before = page[-1].id
        return jobs

    async def _done(self) -> int:
        """How many jobs have ended, as far as the queue can tell just now."""
        with suppress(SvcInfraError):
            counts = (await self.place.queue.stats()).counts
            self._ended = self._stored - counts[JobState.READY] - counts[JobState.RUNNING]
        return self._ended

    async def _do(self, name: str, fault: Fault) -> None:
        self.log.append(name)
        try:
            await fault()
        except (OSError, SvcInfraError) as error:  # a fault may meet the one before
            self.log.append(f"({error})")

    def _start(self, number: int) -> None:
        pool = SMALL_POOL if number % 2 else {}
        environment = {**ENVIRONMENT, **self.place.variables, **pool, FOLDER: str(self.folder)}
        self._workers.insert(number, subprocess.Popen([*WORKER, "--no-scheduler"], cwd=ROOT, env=environment))

    async def _keep(self) -> None:
        """Start workers again that could not begin while their server was down, as whoever supervises them does."""
        while True:
            for number, worker in enumerate(self._workers):
                if worker.poll() == UNAVAILABLE:
                    del self._workers[number]
                    self._start(number)
                    self.log.append("(a worker is started again)")
            await asyncio.sleep(0.2)

    async def _busy(self) -> int:
        """The number of a worker that has something to lose; of any, when for seconds none has."""
        for _ in range(LOOKS):
            with suppress(SvcInfraError):
                running = await self.place.queue.list(state=JobState.RUNNING)
                pids = {str(job.worker_id).split(":")[1] for job in running}
                if found := [number for number, worker in enumerate(self._workers) if str(worker.pid) in pids]:
                    return self.chance.choice(found)
            await asyncio.sleep(0.01)
        return self.chance.randrange(WORKERS)

    async def _kill(self) -> None:
        number = await self._busy()
        worker = self._workers.pop(number)
        ended = worker.poll()
        worker.kill()
        worker.wait()
        self._start(number)
        assert ended in (None, UNAVAILABLE), f"worker {number} ended by itself with {ended}"

    async def _stop(self) -> None:
        worker = self._workers[await self._busy()]
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(OUTAGE_SECONDS)
        worker.send_signal(signal.SIGCONT)
