"""Apps that are asked whether they answer as they are documented."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.jobs.add import add_jobs
from svc_infra.mail import add_mail
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.conditional import Conditional, etag_of
from svc_infra.middleware.http import rate_limit
from svc_infra.security.add import add_auth_users
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.oauth import github
from svc_infra.security.oauth.add import add_oauth
from svc_infra.security.organizations.add import add_organizations
from svc_infra.tenancy.add import add_tenancy
from tracker.app import create

CHEAP = {"hash_memory_kib": 64, "hash_passes": 1}
"""What a password costs says nothing about answers."""
ETAG = etag_of("document")
CHANGED = datetime(2026, 1, 1, tzinfo=UTC)


class Order(BaseModel):
    """What a client orders."""

    item: str


def guarded(sql_url: str) -> FastAPI:
    """An app whose few routes refuse in all the ways that the tracker's never do."""
    app = create_app(name="Guarded", release="1", settings=Settings(app={"env": "test"}, sql={"url": sql_url}))
    add_db(app)
    add_idempotency(app)
    app.add_middleware(RateLimitMiddleware, ())

    @app.post("/orders", dependencies=[Idempotent(caller=lambda request: "ana")])
    async def order(order: Order) -> Order:
        return order

    @app.get("/documents/{number}")
    async def read(number: int, conditional: Annotated[Conditional, Depends()]) -> int:
        conditional.check(etag=ETAG, last_modified=CHANGED)
        return number

    @app.put("/documents/{number}")
    async def write(number: int, conditional: Annotated[Conditional, Depends()]) -> int:
        conditional.check(etag=ETAG, last_modified=CHANGED, required=True)
        return number

    @app.get("/limited", dependencies=[rate_limit("5/minute", per="ip")])
    async def limited(number: int = 1) -> int:
        return number

    return app


def tracker(sql_url: str) -> FastAPI:
    """The example service."""
    return create(Settings(app={"env": "test"}, auth=CHEAP, sql={"url": sql_url}))


def shared(sql_url: str) -> FastAPI:
    """An app with what several people share, programs, and logins elsewhere, which the tracker lacks."""
    settings = Settings(app={"env": "test"}, auth=CHEAP, sql={"url": sql_url})
    app = create_app(name="Shared", release="1", settings=settings)
    add_db(app)
    add_jobs(app)
    add_mail(app)
    add_auth_users(app)
    add_tenancy(app)
    add_api_keys(app)
    add_organizations(app)
    add_oauth(app, providers=[github()])
    return app


def with_second_factors(sql_url: str) -> FastAPI:
    """An app whose users may prove who they are in a second way."""
    app = create_app(settings=Settings(app={"env": "test"}, auth=CHEAP, mfa={"email_codes": True}))
    add_db(app, url=sql_url)
    add_auth_users(app)
    add_mfa(app)
    return app
