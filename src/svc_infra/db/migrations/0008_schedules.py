"""Schedules and their ticks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0008_schedules"
down_revision = "0006_jobs"

_IDENTIFIER = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "svc_schedules",
        sa.Column("name", _IDENTIFIER, nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("declared", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("paused_at", UtcDateTime(), nullable=True),
        sa.Column("decided_until", UtcDateTime(), nullable=False),
        sa.Column("explained_until", UtcDateTime(), nullable=False),
        sa.Column("waiting_due", UtcDateTime(), nullable=True),
        sa.Column("job_id", sa.String(200), nullable=True),
        sa.Column("job_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_svc_schedules"),
    )
    op.create_table(
        "svc_schedule_ticks",
        sa.Column("schedule", _IDENTIFIER, nullable=False),
        sa.Column("due", UtcDateTime(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(200), nullable=True),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("missed_since", UtcDateTime(), nullable=True),
        sa.Column("reason", sa.String(16), nullable=True),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("schedule", "due", name="pk_svc_schedule_ticks"),
    )
    op.create_index("ix_svc_schedule_ticks_decided_at", "svc_schedule_ticks", ["decided_at"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("svc_schedule_ticks")
    op.drop_table("svc_schedules")
