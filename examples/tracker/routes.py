"""Projects, tickets and imports over HTTP; organisations have routes of their own (`add_organizations`)."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from svc_infra.db.http import DbSession, ReadSession
from svc_infra.db.sql.repository import SqlRepository
from svc_infra.db.sql.tenant import TenantSqlService
from svc_infra.tenancy.http import TenantId
from svc_infra.webhooks.http import WebhooksDep
from tracker.counters import count_tickets
from tracker.imports import parsed, store_import
from tracker.models import Import, Priority, Project, Status, Ticket

router = APIRouter(tags=["tracker"])

Title = Annotated[str, Field(min_length=1, max_length=300)]
Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]


class Given(BaseModel):
    """What a client sends: nothing but the fields named."""

    model_config = ConfigDict(extra="forbid")


class Shown(BaseModel):
    """What a client sees of a row."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID


class NameIn(Given):
    """A new project."""

    name: Annotated[str, Field(min_length=1, max_length=200)]


class ProjectOut(Shown):
    """A project with its counters."""

    name: str
    open_tickets: int
    closed_tickets: int


class TicketIn(Given):
    """A new ticket."""

    title: Title
    description: Annotated[str, Field(max_length=10_000)] = ""
    priority: Priority = Priority.NORMAL


class TicketChange(Given):
    """What can be changed of a ticket."""

    title: Title | None = None
    priority: Priority | None = None
    status: Status | None = None


class TicketOut(Shown):
    """A ticket."""

    project_id: UUID
    title: str
    description: str
    priority: Priority
    status: Status
    created_at: datetime


class TicketPage(BaseModel):
    """Some tickets of a project, newest first, and how many there are in all."""

    items: list[TicketOut]
    total: int


class ImportOut(Shown):
    """An import and how far it is."""

    filename: str
    state: str
    rows_total: int
    rows_done: int


def projects(tenant: str) -> TenantSqlService[Project]:
    """The projects of a tenant."""
    return TenantSqlService(SqlRepository(Project), tenant_id=tenant)


def tickets(tenant: str) -> TenantSqlService[Ticket]:
    """The tickets of a tenant."""
    return TenantSqlService(SqlRepository(Ticket), tenant_id=tenant)


@router.post("/projects", status_code=201)
async def create_project(body: NameIn, tenant: TenantId, session: DbSession) -> ProjectOut:
    """Make a project."""
    return ProjectOut.model_validate(await projects(tenant).create(session, {"name": body.name}))


@router.get("/projects")
async def list_projects(
    tenant: TenantId, session: ReadSession, limit: Limit = 50, offset: Offset = 0
) -> list[ProjectOut]:
    """The organisation's projects."""
    found = await projects(tenant).list(session, order_by=[Project.id], limit=limit, offset=offset)
    return [ProjectOut.model_validate(one) for one in found]


@router.post("/projects/{project_id}/tickets", status_code=201)
async def create_ticket(
    project_id: UUID, body: TicketIn, tenant: TenantId, session: DbSession, webhooks: WebhooksDep
) -> TicketOut:
    """Make a ticket: the row, the job that counts and the event that tells are one transaction."""
    await projects(tenant).get_or_404(session, project_id)
    ticket = await tickets(tenant).create(session, {"project_id": project_id, **body.model_dump()})
    shown = TicketOut.model_validate(ticket)
    await count_tickets.options(session=session).enqueue(project_id=project_id)
    await webhooks.publish("ticket.created", shown.model_dump(mode="json"), session=session)
    return shown


@router.get("/projects/{project_id}/tickets")
async def list_tickets(
    project_id: UUID, tenant: TenantId, session: ReadSession, limit: Limit = 50, offset: Offset = 0
) -> TicketPage:
    """A project's tickets, newest first."""
    await projects(tenant).get_or_404(session, project_id)
    where = [Ticket.project_id == project_id]
    found = await tickets(tenant).list(session, where=where, order_by=[Ticket.id.desc()], limit=limit, offset=offset)
    total = await tickets(tenant).count(session, where=where)
    return TicketPage(items=[TicketOut.model_validate(one) for one in found], total=total)


@router.patch("/tickets/{ticket_id}")
async def change_ticket(
    ticket_id: UUID, body: TicketChange, tenant: TenantId, session: DbSession, webhooks: WebhooksDep
) -> TicketOut:
    """Change a ticket."""
    ticket = await tickets(tenant).update(session, ticket_id, body.model_dump(exclude_none=True))
    shown = TicketOut.model_validate(ticket)
    await count_tickets.options(session=session).enqueue(project_id=ticket.project_id)
    await webhooks.publish("ticket.changed", shown.model_dump(mode="json"), session=session)
    return shown


@router.post("/projects/{project_id}/imports", status_code=202)
async def import_tickets(project_id: UUID, file: UploadFile, tenant: TenantId, session: DbSession) -> ImportOut:
    """Import a CSV file of tickets (columns title, description, priority, status); a job stores them."""
    await projects(tenant).get_or_404(session, project_id)
    content = await file.read()
    upload = Import(
        tenant_id=tenant,
        project_id=project_id,
        filename=(file.filename or "tickets.csv")[:200],
        content=content,
        rows_total=len(await asyncio.to_thread(parsed, content)),
    )
    session.add(upload)
    await session.flush()
    await store_import.options(session=session).enqueue(import_id=upload.id)
    return ImportOut.model_validate(upload)


@router.get("/imports/{import_id}")
async def get_import(import_id: UUID, tenant: TenantId, session: ReadSession) -> ImportOut:
    """An import and how far it is."""
    imports = TenantSqlService(SqlRepository(Import), tenant_id=tenant)
    return ImportOut.model_validate(await imports.get_or_404(session, import_id))
