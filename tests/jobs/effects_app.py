"""An app whose jobs have effects that can be counted. Tests run it with `svc-infra jobs`, in processes of its own.

What is for Redis is loaded with Redis: each of many processes on SQL begins the sooner.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.add import add_db
from svc_infra.jobs import JobContext, task
from svc_infra.jobs.add import add_jobs
from svc_infra.wiring import Part, wiring_of

EFFECTS = "effects"


@task(name="effect")
async def effect_in_sql(number: int, session: AsyncSession) -> None:
    """Add a row, in one transaction with the end of the job."""
    await session.execute(text("INSERT INTO effects (number) VALUES (:number)"), {"number": number})


@task(name="effect")
async def effect_in_redis(number: int, context: JobContext) -> None:
    """Count the effect, which Redis cannot do together with the end of the job."""
    from redis.asyncio import Redis

    await context.get(Redis).hincrby(EFFECTS, str(number), 1)


@task(name="wait_for_file")
async def wait_for_file(path: str, session: AsyncSession) -> None:
    """Add a row once there is a file, in one transaction with the end of the job."""
    while not await asyncio.to_thread(Path(path).exists):
        await asyncio.sleep(0.01)
    await session.execute(text("INSERT INTO effects (number) VALUES (1)"))


@task(name="leave")
async def leave() -> None:
    """Take the worker's process along."""
    os._exit(9)


@task(name="hang")
async def hang() -> None:
    """Run until cancelled."""
    await asyncio.Event().wait()


@task(name="facts")
async def facts() -> dict[str, int | str]:
    """How many objects the garbage collector leaves alone, and whose event loop this is."""
    return {"frozen": gc.get_freeze_count(), "loop": type(asyncio.get_running_loop()).__module__}


def make() -> FastAPI:
    """The app, on `REDIS_URL` where it is set and else on `SQL_URL`."""
    app = FastAPI()
    wiring = wiring_of(app)
    url = wiring.settings.redis.url
    if url is None:
        add_db(app)
        add_jobs(app, tasks=[effect_in_sql, wait_for_file, hang, leave, facts])
        return app

    from redis.asyncio import Redis

    from svc_infra.redis import connect

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        async with connect(url) as client:
            wiring.provide(Redis, client)
            yield

    wiring.add(Part("cache", connected))
    add_jobs(app, tasks=[effect_in_redis, hang])
    return app
