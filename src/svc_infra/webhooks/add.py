"""Wires the room into an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.db import AsyncDatabase
from svc_infra.http import HttpClient
from svc_infra.http.add import add_http
from svc_infra.jobs import JobQueue
from svc_infra.jobs.add import contribute_tasks
from svc_infra.security import FieldCipher, KeyRing
from svc_infra.security.add import add_security
from svc_infra.security.audit import AuditTrail
from svc_infra.security.audit.add import add_audit
from svc_infra.security.cipher import SealedColumns
from svc_infra.webhooks.deliver import OnDead, WebhookDelivery, deliver, fan_out
from svc_infra.webhooks.http import webhooks_router
from svc_infra.webhooks.models import WebhookEndpoint
from svc_infra.webhooks.publish import Webhooks
from svc_infra.webhooks.retry import WebhookRetry
from svc_infra.webhooks.subscribe import Endpoints, secret_context
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

_PART = "webhooks"


def add_webhooks(
    app: FastAPI, *, prefix: str = "/webhooks", retry: WebhookRetry | None = None, on_dead: OnDead | None = None
) -> None:
    """Let an app publish events, and its tenants subscribe to them. A second call changes nothing.

    Endpoint secrets are sealed with the secret `WEBHOOKS_KEY`, of at least 32 bytes. To change it, put the old one into
    `WEBHOOKS_KEY_PREVIOUS` and run `svc-infra secrets rotate`.

    Args:
        app: An app with a database, jobs, accounts and tenancy (`add_db`, `add_jobs`, `add_auth_users`,
            `add_tenancy`), in any order.
        prefix: Where the routes are.
        retry: When to try again; from the settings (`WEBHOOKS_RETRY_SCHEDULE_SECONDS`) when left out.
        on_dead: Called in the transaction that gives a delivery up, to notify the application.

    Raises:
        ConfigurationError: At start-up: a room that it needs is missing, or `WEBHOOKS_KEY` is, outside local and test.
    """
    wiring = wiring_of(app)
    if _PART in wiring.parts:
        return
    add_http(app)
    add_security(app)
    add_audit(app)
    contribute_tasks(app, [fan_out, deliver])
    wiring.add(Part(_PART, run=lambda: _running(wiring, retry, on_dead), after=("db", "http", "jobs", "keys", "audit")))
    app.include_router(webhooks_router(prefix))


@asynccontextmanager
async def _running(wiring: Wiring, retry: WebhookRetry | None, on_dead: OnDead | None) -> AsyncIterator[None]:
    settings = wiring.settings.webhooks
    queue, http = wiring.get(JobQueue), wiring.get(HttpClient)
    cipher = FieldCipher(KeyRing.read(wiring.settings.secrets, "WEBHOOKS_KEY"), "webhooks")
    wiring.get(SealedColumns).add(WebhookEndpoint.sealed_secret, cipher, secret_context)
    endpoints = Endpoints(cipher, http, wiring.get(AuditTrail))
    delivery = WebhookDelivery(
        wiring.get(AsyncDatabase),
        queue,
        http,
        endpoints,
        cipher,
        retry=retry or WebhookRetry(settings.retry_schedule_seconds),
        timeout_seconds=settings.timeout_seconds,
        on_dead=on_dead,
    )
    wiring.provide(Endpoints, endpoints)
    wiring.provide(WebhookDelivery, delivery)
    wiring.provide(Webhooks, Webhooks(queue))
    yield
