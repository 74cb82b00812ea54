"""Idempotency keys and the answers that they replay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0005_idempotency"
down_revision = "0004_webhooks"


def upgrade() -> None:
    """Create the room's table."""
    op.create_table(
        "svc_idempotency_keys",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("lease_expires_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.Text),
        sa.Column("body", sa.LargeBinary),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("svc_idempotency_keys")
