"""Webhook endpoints, events, deliveries and attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import Json, UtcDateTime

revision = "0004_webhooks"
down_revision = "0003_jobs"


def upgrade() -> None:
    """Create the room's tables."""
    op.create_table(
        "svc_webhook_endpoints",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False, index=True),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("topics", Json, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("sealed_secret", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "svc_webhook_events",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False, index=True),
        sa.Column("topic", sa.String(200), nullable=False),
        sa.Column("payload", Json, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", sa.String(200)),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.UniqueConstraint("tenant_id", "key", name="uq_svc_webhook_events_tenant_id_key"),
    )
    _deliveries()
    _attempts()


def downgrade() -> None:
    """Drop them."""
    for table in ("svc_webhook_attempts", "svc_webhook_deliveries", "svc_webhook_events", "svc_webhook_endpoints"):
        op.drop_table(table)


def _deliveries() -> None:
    op.create_table(
        "svc_webhook_deliveries",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False, index=True),
        sa.Column("event_id", sa.Uuid, sa.ForeignKey("svc_webhook_events.id", ondelete="CASCADE"), nullable=False),
        sa.Column(
            "endpoint_id",
            sa.Uuid,
            sa.ForeignKey("svc_webhook_endpoints.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.String(500)),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("delivered_at", UtcDateTime),
        sa.UniqueConstraint("event_id", "endpoint_id", name="uq_svc_webhook_deliveries_event_id_endpoint_id"),
    )
    op.create_index(
        "ix_svc_webhook_deliveries_tenant_state", "svc_webhook_deliveries", ["tenant_id", "state", "created_at"]
    )


def _attempts() -> None:
    op.create_table(
        "svc_webhook_attempts",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column(
            "delivery_id",
            sa.Uuid,
            sa.ForeignKey("svc_webhook_deliveries.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("started_at", UtcDateTime, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.String(500)),
    )
