"""Flows of jobs and their steps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0009_flows"
down_revision = "0008_schedules"

_IDENTIFIER = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "svc_flows",
        sa.Column("id", _IDENTIFIER, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.Column("succeeded", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("ignored", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("tenant", _IDENTIFIER, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_svc_flows"),
    )
    op.create_index("ix_svc_flows_created_at", "svc_flows", ["created_at"])
    op.create_index("ix_svc_flows_finished_at", "svc_flows", ["finished_at"])
    op.create_table(
        "svc_flow_steps",
        sa.Column("flow_id", _IDENTIFIER, nullable=False),
        sa.Column("name", _IDENTIFIER, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("task", sa.String(200), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("inputs", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("dependents", sa.Text(), nullable=False),
        sa.Column("on_failure", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("blockers", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("enqueued_at", UtcDateTime(), nullable=True),
        sa.Column("look_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("flow_id", "name", name="pk_svc_flow_steps"),
    )
    enqueued = sa.text("state = 'enqueued'")
    op.create_index(
        "ix_svc_flow_steps_enqueued",
        "svc_flow_steps",
        ["look_at"],
        postgresql_where=enqueued,
        sqlite_where=enqueued,
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("svc_flow_steps")
    op.drop_table("svc_flows")
