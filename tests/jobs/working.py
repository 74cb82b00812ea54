"""A worker for a test, and queues that can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from svc_infra.errors import UnavailableError
from svc_infra.jobs import InMemoryJobQueue, Job, JobQueue, JobState, JobStore, Task, Worker
from svc_infra.jobs.queue import Beat, Completion
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import Wiring

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


class UnreliableQueue(InMemoryJobQueue):
    """Does not answer the calls named in `down`; notes every call."""

    def __init__(self) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.calls: list[str] = []

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if call in self.down:
            raise UnavailableError("The queue is down.")

    async def reserve(self, **terms: Any) -> list[Job]:
        self._answer("reserve")
        return await super().reserve(**terms)

    async def heartbeat(self, jobs: Sequence[Job], *, lease_seconds: float = 15.0) -> Beat:
        self._answer("heartbeat")
        return await super().heartbeat(jobs, lease_seconds=lease_seconds)

    async def ack_many(self, completions: Sequence[Completion]) -> set[str]:
        self._answer("ack")
        return await super().ack_many(completions)

    async def wait(self, timeout_seconds: float) -> None:
        self._answer("wait")
        await super().wait(timeout_seconds)


@asynccontextmanager
async def working(queue: JobQueue, *tasks: Task[..., Any], **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs for as long as the block does, and drains within a second."""
    options = {"poll_interval_seconds": 0.01, "drain_seconds": 1.0, **options}
    worker = Worker(queue, tasks, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


async def until(fact: Callable[[], bool | Awaitable[bool]], *, seconds: float = 10.0) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(seconds):
        while True:
            found = fact()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.002)


async def until_state(store: JobStore, job_id: str, *states: JobState, seconds: float = 10.0) -> Job:
    """Wait until a job is in one of these states; by default a terminal one."""
    wanted = states or (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED)
    found: list[Job] = []

    async def reached() -> bool:
        job = await store.get(job_id)
        found[:] = [job] if job is not None and job.state in wanted else []
        return bool(found)

    await until(reached, seconds=seconds)
    return found[0]


def measured(wiring: Wiring, name: str, **labels: str) -> float:
    """What an app has counted."""
    return wiring.get(Metrics).registry.get_sample_value(name, labels) or 0.0
