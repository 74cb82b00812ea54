"""The whole service: one line for each capability."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from svc_infra import easy_service_app
from svc_infra.api.fastapi.admin import add_admin
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.jobs.add import add_jobs
from svc_infra.mail import add_mail
from svc_infra.security.add import add_auth_users
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.organizations.add import add_organizations
from svc_infra.tenancy.add import add_tenancy
from svc_infra.webhooks.add import add_webhooks
from tracker.counters import count_tickets
from tracker.imports import store_import
from tracker.routes import router


def create(settings: Settings | None = None) -> FastAPI:
    """The tracker, on whatever engines the settings name: by default a SQLite file, else `SQL_URL` and `REDIS_URL`."""
    app = easy_service_app(name="Tracker", release="1.0.0", settings=settings)
    add_db(app, migrations=Path(__file__).parent / "migrations")
    add_auth_users(app)
    add_mfa(app)
    add_api_keys(app, key_prefix="tracker")
    add_organizations(app, prefix="/organizations")
    add_tenancy(app)
    add_jobs(app, tasks=[count_tickets, store_import])
    add_mail(app)
    add_webhooks(app)
    add_admin(app)
    app.include_router(router)
    return app
