"""The room's tables."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, HasTenant, HasTimestamps, Json


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  # out of attempts, or refused for good: waits for someone to redeliver it


class WebhookEndpoint(HasId, HasTenant, HasTimestamps, Base):
    """An address that a tenant wants events sent to."""

    __tablename__ = "svc_webhook_endpoints"

    url: Mapped[str] = mapped_column(String(2048))
    topics: Mapped[list[str]] = mapped_column(Json)
    description: Mapped[str] = mapped_column(String(200), default="")
    enabled: Mapped[bool] = mapped_column(default=True)
    sealed_secret: Mapped[str] = mapped_column(Text)


class WebhookEvent(HasId, HasTenant, Base):
    """Something that happened, as it was told to every endpoint that asked for it."""

    __tablename__ = "svc_webhook_events"
    __table_args__ = (UniqueConstraint("tenant_id", "key"),)

    topic: Mapped[str] = mapped_column(String(200))
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    version: Mapped[int] = mapped_column(default=1)
    key: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime]


class Delivery(HasId, HasTenant, Base):
    """One event on its way to one endpoint."""

    __tablename__ = "svc_webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("event_id", "endpoint_id"),
        Index("ix_svc_webhook_deliveries_tenant_state", "tenant_id", "state", "created_at"),
    )

    event_id: Mapped[UUID] = mapped_column(ForeignKey("svc_webhook_events.id", ondelete="CASCADE"))
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("svc_webhook_endpoints.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(20), default=DeliveryState.PENDING)
    attempts: Mapped[int] = mapped_column(default=0)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]


class DeliveryAttempt(HasId, Base):
    """One request that was made for a delivery, and how it ended."""

    __tablename__ = "svc_webhook_attempts"

    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("svc_webhook_deliveries.id", ondelete="CASCADE"), index=True)
    started_at: Mapped[datetime]
    duration_ms: Mapped[int]
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(500))
