"""The room on each engine, driven without a worker: a test runs the jobs itself, one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from svc_infra.db import AsyncDatabase
from svc_infra.http import HttpClient
from svc_infra.jobs import JobState, SqlJobQueue
from svc_infra.security import FieldCipher, KeyRing
from svc_infra.security.audit import AuditKeys, AuditTrail
from svc_infra.webhooks import Endpoints, WebhookDelivery, WebhookRetry, Webhooks
from svc_infra.webhooks.models import Delivery

TENANT = "tenant-a"


@dataclass
class World:
    """Everything that the room is made of."""

    db: AsyncDatabase
    queue: SqlJobQueue
    http: HttpClient
    cipher: FieldCipher
    endpoints: Endpoints
    webhooks: Webhooks
    deliveries: WebhookDelivery
    given_up: list[UUID] = field(default_factory=list)

    async def subscribe(self, url: str, *topics: str, tenant: str = TENANT) -> tuple[UUID, str]:
        """An endpoint's id and secret."""
        async with self.db.session() as session:
            endpoint, secret = await self.endpoints.add(session, tenant_id=tenant, url=url, topics=topics or ("*",))
        return endpoint.id, secret

    async def publish(self, topic: str = "ticket.created", payload: dict[str, Any] | None = None, **more: Any) -> UUID:
        """Publish an event and fan it out."""
        async with self.db.session() as session:
            event_id = await self.webhooks.publish(
                topic, payload or {"id": 1}, session=session, **{"tenant_id": TENANT, **more}
            )
        async with self.db.session() as session:
            await self.deliveries.fan_out(session, event_id)
        return event_id

    async def all_deliveries(self, tenant: str = TENANT) -> list[Delivery]:
        """The tenant's deliveries."""
        async with self.db.session(read_only=True) as session:
            return list(await self.deliveries.list(session, tenant_id=tenant))

    async def queued(self, name: str) -> int:
        """How many jobs of a task wait."""
        return len([job for job in await self.queue.list(state=JobState.READY) if job.name == name])


TRAIL = AuditTrail(AuditKeys(KeyRing(SecretStr("a test secret of more than thirty-two bytes"))))


def cipher_of(key: str) -> FieldCipher:
    return FieldCipher(KeyRing(SecretStr(key)), "webhooks")


@pytest.fixture
async def world(db: AsyncDatabase) -> AsyncIterator[World]:
    """A fresh room with a schedule of two retries."""
    queue = SqlJobQueue(db)
    cipher = cipher_of("a test key of more than thirty-two bytes")
    async with HttpClient(allow_private_addresses=True, timeout_seconds=5) as http:
        endpoints = Endpoints(cipher, http, TRAIL)
        given_up: list[UUID] = []

        async def on_dead(_session: Any, delivery: Delivery) -> None:
            given_up.append(delivery.id)

        retry = WebhookRetry(schedule_seconds=(1.0, 2.0), jitter=0)
        deliveries = WebhookDelivery(db, queue, http, endpoints, cipher, retry=retry, on_dead=on_dead)
        yield World(db, queue, http, cipher, endpoints, Webhooks(queue), deliveries, given_up)
