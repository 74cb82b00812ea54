"""Admins who act as other users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0019_admin"
down_revision = "0018_mfa"

_TABLE = "svc_impersonations"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        _TABLE,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("target_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("end_reason", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_svc_impersonations"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["svc_sessions.id"], name="fk_svc_impersonations_session_id", ondelete="CASCADE"
        ),
    )
    op.create_index(f"ix_{_TABLE}_session_id", _TABLE, ["session_id"])
    alive = sa.text("ended_at IS NULL")
    for name, column, unique in (
        (f"uq_{_TABLE}_alive", "session_id", True),
        (f"ix_{_TABLE}_target", "target_id", False),
        (f"ix_{_TABLE}_expiry", "expires_at", False),
    ):
        op.create_index(name, _TABLE, [column], unique=unique, postgresql_where=alive, sqlite_where=alive)


def downgrade() -> None:
    """Drop it."""
    op.drop_table(_TABLE)
