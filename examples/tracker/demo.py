"""Something to look at: an account, an admin, an organisation, a project, and the tickets of a real CSV file."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from svc_infra.db import AsyncDatabase
from svc_infra.security.accounts import Accounts
from svc_infra.security.organizations import Organizations
from svc_infra.wiring import wiring_of
from tracker.imports import parsed, store_import
from tracker.models import Import, Project

TICKETS = Path(__file__).parent / "tickets.csv"


@dataclass(frozen=True, slots=True)
class Login:
    """A login that was made up just now, and that of an admin, who has the same password."""

    email: str
    admin_email: str
    password: str
    tenant_id: str


async def seed(app: Any) -> Login:
    """Make an account with data in a running tracker; each call makes another one.

    The CSV file is imported by a job, exactly as an uploaded one is.
    """
    wiring = wiring_of(app)
    password = secrets.token_urlsafe(12)
    with wiring.active():
        async with wiring.get(AsyncDatabase).session() as session:
            number = 1 + (await session.scalar(select(func.count()).select_from(Project)) or 0)
            email = f"demo{number}@example.com"
            user = await wiring.get(Accounts).register(session, email=email, password=password)
            admin_email, roles = f"admin{number}@example.com", ["admin", "auditor"]
            await wiring.get(Accounts).register(session, email=admin_email, password=password, roles=roles)
            organization = await Organizations(session).create(name=f"Demo {number}", owner_id=user.id)
            tenant = str(organization.id)
            project = Project(tenant_id=tenant, name="Website")
            session.add(project)
            await session.flush()
            content = TICKETS.read_bytes()
            upload = Import(
                tenant_id=tenant,
                project_id=project.id,
                filename=TICKETS.name,
                content=content,
                rows_total=len(parsed(content)),
            )
            session.add(upload)
            await session.flush()
            await store_import.options(session=session).enqueue(import_id=upload.id)
    return Login(email, admin_email, password, tenant)
