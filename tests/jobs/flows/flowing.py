"""Flows on every kind of queue, with the worker of an app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, Outbox, OutboxRelay
from svc_infra.jobs import InMemoryJobQueue, JobQueue, RedisJobQueue, SqlJobQueue, Task
from svc_infra.jobs.flows import Flow, Flows, FlowStep, Plan
from svc_infra.jobs.flows.advance import SILENT_SECONDS
from svc_infra.jobs.flows.ends import Ends
from svc_infra.jobs.queue import JobStore
from svc_infra.jobs.redis.queue import OUTBOX_TOPIC
from svc_infra.testing import FakeClock
from svc_infra.wiring import Wiring
from tests.jobs.working import working

KINDS = ["sqlite", "postgres", "valkey", "memory"]


@dataclass
class Room:
    """Flows, their queue and their database."""

    db: AsyncDatabase
    queue: SqlJobQueue | RedisJobQueue | InMemoryJobQueue
    flows: Flows

    @property
    def wiring(self) -> Wiring:
        wiring = Wiring(Settings(app={"env": "test"}))
        wiring.provide(AsyncDatabase, self.db)
        wiring.provide(JobQueue, self.queue)
        wiring.provide(JobStore, self.queue)
        wiring.provide(Flows, self.flows)
        return wiring

    @asynccontextmanager
    async def working(self, *tasks: Task[..., Any], **options: Any) -> AsyncIterator[None]:
        """A worker for these tasks."""
        async with working(self.queue, *tasks, wiring=self.wiring, **options):
            yield

    async def run(self, plan: Plan, *tasks: Task[..., Any]) -> Flow:
        """Start a flow and work until it has ended, callbacks included."""
        flow_id = await plan.start(on=self.flows)
        return await self.work(flow_id, *tasks)

    async def work(self, flow_id: str, *tasks: Task[..., Any]) -> Flow:
        """Work until a flow has ended, callbacks included."""
        async with self.working(*tasks):
            flow = await self.flows.wait_for(flow_id, 20)
            async with asyncio.timeout(20):
                while any(step.state == "enqueued" for step in await self.flows.steps(flow_id)):
                    await asyncio.sleep(0.005)
        return flow

    async def sweep(self, after_seconds: float = SILENT_SECONDS + 1) -> int:
        """Sweep as a process does so much later."""
        later = FakeClock(datetime.now(UTC) + timedelta(seconds=after_seconds))
        return await Ends(self.queue, self.db, later).sweep()

    async def steps(self, flow_id: str) -> dict[str, FlowStep]:
        """The steps by name."""
        return {step.name: step for step in await self.flows.steps(flow_id)}

    async def states(self, flow_id: str) -> dict[str, str]:
        """The state of each step."""
        return {name: str(step.state) for name, step in (await self.steps(flow_id)).items()}


@asynccontextmanager
async def room(
    kind: str, url: Callable[[str], str], *, clock: FakeClock | None = None, **options: Any
) -> AsyncIterator[Room]:
    """A room on this kind of queue."""
    db = AsyncDatabase(url(f"migrated_{'postgres' if kind == 'postgres' else 'sqlite'}_url"))
    options = {"backoff_seconds": 0.001, "clock": clock, **options}
    try:
        if kind != "valkey":
            queue = InMemoryJobQueue(**options) if kind == "memory" else SqlJobQueue(db, **options)
            yield Room(db, queue, Flows(queue, db, clock=clock))
            return
        relay, stop = OutboxRelay(db, poll_interval_seconds=0.05), asyncio.Event()
        redis = RedisJobQueue(url("valkey_url"), outbox=Outbox(wake=relay.wake), **options)
        relay.register(OUTBOX_TOPIC, redis.relay)
        relaying = asyncio.create_task(relay.run(stop))
        try:
            yield Room(db, redis, Flows(redis, db, clock=clock))
        finally:
            stop.set()
            await relaying
            await redis.close()
    finally:
        await db.dispose()


@pytest.fixture(params=KINDS)
async def flowing(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    """Each kind of queue in turn."""
    async with room(request.param, request.getfixturevalue) as made:
        yield made
