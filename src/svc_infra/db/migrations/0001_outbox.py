"""Outbox and inbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import Json, UtcDateTime

revision = "0001_outbox"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "svc_outbox",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("topic", sa.String(100), nullable=False),
        sa.Column("key", sa.String(200), nullable=True),
        sa.Column("payload", Json, nullable=False),
        sa.Column("headers", Json, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.String(500), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("available_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_svc_outbox"),
        sa.UniqueConstraint("id", name="uq_svc_outbox_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_svc_outbox_due", "svc_outbox", ["topic", "available_at"])
    op.create_index("ix_svc_outbox_key", "svc_outbox", ["topic", "key", "position"])
    op.create_table(
        "svc_inbox",
        sa.Column("consumer", sa.String(100), nullable=False),
        sa.Column("message_id", sa.String(200), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "message_id", name="pk_svc_inbox"),
    )
    op.create_index("ix_svc_inbox_received_at", "svc_inbox", ["received_at"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("svc_inbox")
    op.drop_table("svc_outbox")
