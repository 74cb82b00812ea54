"""An app with flows. Tests run it with `svc-infra`, in processes of its own, and here."""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.add import add_db
from svc_infra.jobs import task
from svc_infra.jobs.add import add_jobs
from svc_infra.jobs.flows.add import add_flows


@task(name="pack")
async def pack(parcel: int) -> int:
    """Give back the number."""
    return parcel


@task(name="effect")
async def effect(number: int, before: list[int], session: AsyncSession) -> int:
    """Add a row, in one transaction with the end of the step."""
    values = {"number": number, "before": len(before)}
    await session.execute(text("INSERT INTO effects (number, before) VALUES (:number, :before)"), values)
    return number


def make() -> FastAPI:
    """The app."""
    app = FastAPI()
    add_flows(app)
    add_jobs(app, tasks=[pack, effect])
    add_db(app)
    return app
