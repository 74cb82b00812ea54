"""What an API key may do how often, and which key did what is on record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020_key_rates"
down_revision = "0019_admin"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("svc_api_keys", sa.Column("rate", sa.String(64)))
    op.add_column("svc_audit_entries", sa.Column("api_key_id", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("svc_audit_entries", "api_key_id")
    op.drop_column("svc_api_keys", "rate")
