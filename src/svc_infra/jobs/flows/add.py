"""Wires flows into an app."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db import AsyncDatabase
from svc_infra.jobs.flows.ends import SWEEP_LIMIT_STEPS
from svc_infra.jobs.flows.flows import PURGE_LIMIT_FLOWS, Flows
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.retry import Outage
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.types import Clock
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

SWEEP_INTERVAL_SECONDS = 10.0
PURGE_INTERVAL_SECONDS = 300.0
FAILED_KEPT_SECONDS = 30 * 86_400.0
"""How long failed flows are kept, so that they can be retried; the others for `JOBS_RETENTION_SECONDS`."""

_log = logging.getLogger(__name__)


def add_flows(app: FastAPI) -> None:
    """Give an app workflows, chains and batches, whose jobs its workers run; a second call changes nothing.

    It needs `add_db` and `add_jobs`, called before or after. Every process of the app that is up helps to find what
    nobody could tell, such as that a step's job has killed its last worker.

    Args:
        app: The app, in every process: those that start flows and those that run jobs.
    """
    wiring = wiring_of(app)
    wiring.add(Part("flows", lambda: _running(wiring), after=("db", "jobs", "outbox")))


@asynccontextmanager
async def _running(wiring: Wiring) -> AsyncIterator[None]:
    queue = wiring.get(JobQueue)
    db = queue.db if isinstance(queue, SqlJobQueue) else wiring.get(AsyncDatabase)
    flows = Flows(queue, db, clock=wiring.get(Clock) if wiring.has(Clock) else None)
    wiring.provide(Flows, flows)
    looking = asyncio.create_task(_look_after(flows, wiring.settings.jobs.retention_seconds))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait({looking})


async def _look_after(flows: Flows, retention_seconds: float) -> None:
    outage, purged_at = Outage(), -PURGE_INTERVAL_SECONDS
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_SECONDS)
        try:
            while await flows.ends.sweep() == SWEEP_LIMIT_STEPS:
                pass
            if time.monotonic() - purged_at >= PURGE_INTERVAL_SECONDS:
                for failed, seconds in ((False, retention_seconds), (True, FAILED_KEPT_SECONDS)):
                    while await flows.purge(older_than_seconds=seconds, failed=failed) == PURGE_LIMIT_FLOWS:
                        pass
                purged_at = time.monotonic()
            outage.over()
        except Exception as error:  # noqa: BLE001 - it outlives every outage, which logs and counts itself
            await asyncio.sleep(outage.failed(error))
