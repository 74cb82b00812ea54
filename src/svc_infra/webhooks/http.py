"""The room over HTTP: a tenant's endpoints and what became of their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from svc_infra.db.http import DbSession, ReadSession
from svc_infra.security.http import PrivateRoute
from svc_infra.tenancy.http import RequireTenantPermission, TenantId
from svc_infra.webhooks.deliver import WebhookDelivery
from svc_infra.webhooks.models import DeliveryState
from svc_infra.webhooks.publish import Webhooks
from svc_infra.webhooks.subscribe import MAX_TOPICS, TOPIC_PATTERN, Endpoints
from svc_infra.wiring import wiring_of

_READ = [RequireTenantPermission("webhook.read")]
_WRITE = [RequireTenantPermission("webhook.write")]


def _webhooks(request: Request) -> Webhooks:
    return wiring_of(request.app).get(Webhooks)


def _endpoints(request: Request) -> Endpoints:
    return wiring_of(request.app).get(Endpoints)


def _deliveries(request: Request) -> WebhookDelivery:
    return wiring_of(request.app).get(WebhookDelivery)


WebhooksDep = Annotated[Webhooks, Depends(_webhooks)]
EndpointsDep = Annotated[Endpoints, Depends(_endpoints)]
DeliveriesDep = Annotated[WebhookDelivery, Depends(_deliveries)]


Pattern = Annotated[str, Field(json_schema_extra={"pattern": TOPIC_PATTERN})]


class EndpointIn(BaseModel):
    """An address, and what it wants to be told."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(min_length=1, max_length=2048, json_schema_extra={"format": "uri"})]
    topics: Annotated[list[Pattern], Field(min_length=1, max_length=MAX_TOPICS)] = ["*"]
    description: Annotated[str, Field(max_length=200)] = ""


class EndpointOut(BaseModel):
    """An endpoint as its tenant sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    url: str
    topics: list[str]
    description: str
    enabled: bool
    created_at: datetime


class NewEndpointOut(EndpointOut):
    """An endpoint just made, with the signing secret that is shown only now."""

    secret: str


class DeliveryOut(BaseModel):
    """One event on its way to one endpoint."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    event_id: UUID
    endpoint_id: UUID
    state: DeliveryState
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


class AttemptOut(BaseModel):
    """One request that was made."""

    model_config = ConfigDict(from_attributes=True)

    started_at: datetime
    duration_ms: int
    status: int | None
    error: str | None


class DeliveryDetails(DeliveryOut):
    """A delivery with everything that was tried."""

    attempts: list[AttemptOut]


def webhooks_router(prefix: str) -> APIRouter:
    """The routes of the room."""
    router = APIRouter(prefix=prefix, tags=["webhooks"], route_class=PrivateRoute)

    @router.post("/endpoints", status_code=201, dependencies=_WRITE)
    async def add_endpoint(
        body: EndpointIn, tenant: TenantId, session: DbSession, endpoints: EndpointsDep
    ) -> NewEndpointOut:
        """Subscribe an address."""
        endpoint, secret = await endpoints.add(
            session, tenant_id=tenant, url=body.url, topics=body.topics, description=body.description
        )
        return NewEndpointOut(**EndpointOut.model_validate(endpoint).model_dump(), secret=secret)

    @router.get("/endpoints", dependencies=_READ)
    async def list_endpoints(tenant: TenantId, session: ReadSession, endpoints: EndpointsDep) -> list[EndpointOut]:
        """The tenant's endpoints."""
        return [EndpointOut.model_validate(one) for one in await endpoints.list(session, tenant)]

    @router.delete("/endpoints/{endpoint_id}", status_code=204, dependencies=_WRITE)
    async def remove_endpoint(endpoint_id: UUID, tenant: TenantId, session: DbSession, endpoints: EndpointsDep) -> None:
        """Unsubscribe an address and forget its deliveries."""
        await endpoints.remove(session, tenant_id=tenant, endpoint_id=endpoint_id)

    @router.get("/deliveries", dependencies=_READ)
    async def list_deliveries(
        tenant: TenantId,
        session: ReadSession,
        deliveries: DeliveriesDep,
        state: DeliveryState | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[DeliveryOut]:
        """The newest deliveries, newest first; `state=dead` is the dead letter."""
        found = await deliveries.list(session, tenant_id=tenant, state=state, limit=limit)
        return [DeliveryOut.model_validate(one) for one in found]

    @router.get("/deliveries/{delivery_id}", dependencies=_READ)
    async def get_delivery(
        delivery_id: UUID, tenant: TenantId, session: ReadSession, deliveries: DeliveriesDep
    ) -> DeliveryDetails:
        """One delivery and its attempts."""
        delivery = await deliveries.get(session, tenant_id=tenant, delivery_id=delivery_id)
        attempts = [AttemptOut.model_validate(one) for one in await deliveries.attempts(session, delivery)]
        return DeliveryDetails(**DeliveryOut.model_validate(delivery).model_dump(), attempts=attempts)

    @router.post("/deliveries/{delivery_id}/redeliver", status_code=202, dependencies=_WRITE)
    async def redeliver(
        delivery_id: UUID, tenant: TenantId, session: DbSession, deliveries: DeliveriesDep
    ) -> DeliveryOut:
        """Send a finished delivery again, under the same `webhook-id`."""
        return DeliveryOut.model_validate(
            await deliveries.redeliver(session, tenant_id=tenant, delivery_id=delivery_id)
        )

    return router
