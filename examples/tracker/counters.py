"""The job that keeps a project's counters."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.jobs import task
from tracker.models import Project, Status, Ticket


@task
async def count_tickets(project_id: UUID, session: AsyncSession) -> None:
    """Count a project's tickets again; the counters and the job's completion are one transaction."""
    by_status = select(Ticket.status, func.count()).where(Ticket.project_id == project_id).group_by(Ticket.status)
    counts = dict((await session.execute(by_status)).tuples().all())
    await session.execute(
        update(Project)
        .where(Project.id == project_id)
        .values(open_tickets=counts.get(Status.OPEN, 0), closed_tickets=counts.get(Status.CLOSED, 0))
    )
