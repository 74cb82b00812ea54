"""An app whose jobs write down what they do. Tests run it with `svc-infra jobs run`, and are not kind to it."""

from __future__ import annotations

import asyncio
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
from tests.chaos.history import Event, History

FOLDER = "CHAOS_FOLDER"
EFFECTS = "chaos:effects"
WORK_SECONDS = 0.005


def always_fails(number: int) -> bool:
    """Whether no attempt of this job succeeds."""
    return number % 97 == 5


def _fails(number: int, attempt: int) -> bool:
    return always_fails(number) or (number % 11 == 3 and attempt == 1)


async def _work(number: int, context: JobContext, history: History) -> tuple[int, str]:
    history.note(Event("began", context.job.id, context.token))
    await asyncio.sleep(WORK_SECONDS)
    if _fails(number, context.attempt):
        raise RuntimeError("as this job does")
    return context.attempt, context.token


@task(name="chaos")
async def in_sql(number: int, context: JobContext, session: AsyncSession, history: History) -> tuple[int, str]:
    """Add a row, in one transaction with the end of the job."""
    row = {"job": context.job.id, "token": context.token}
    await session.execute(text("INSERT INTO effects (job, token) VALUES (:job, :token)"), row)
    ended = await _work(number, context, history)
    history.note(Event("ended", context.job.id, context.token))
    return ended


@task(name="chaos")
async def in_redis(number: int, context: JobContext, history: History) -> tuple[int, str]:
    """Add the token to a set, which Redis cannot do together with the end of the job."""
    from redis.asyncio import Redis  # each of many processes on SQL begins the sooner

    ended = await _work(number, context, history)
    await context.get(Redis).sadd(EFFECTS, f"{context.job.id} {context.token}")
    history.note(Event("ended", context.job.id, context.token))
    return ended


def make() -> FastAPI:
    """The app, on `REDIS_URL` where it is set and else on `SQL_URL`."""
    app = FastAPI()
    wiring = wiring_of(app)
    wiring.provide(History, History(Path(os.environ[FOLDER])))
    url = wiring.settings.redis.url
    if url is None:
        add_db(app)
        add_jobs(app, tasks=[in_sql])
        return app

    from redis.asyncio import Redis

    from svc_infra.redis import connect

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        async with connect(url) as client:
            wiring.provide(Redis, client)
            yield

    wiring.add(Part("chaos", connected))
    add_jobs(app, tasks=[in_redis])
    return app
