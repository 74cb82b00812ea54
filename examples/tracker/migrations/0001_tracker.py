"""Projects, tickets and imports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0001_tracker"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table("projects", *_shared(), *_counters(), sa.Column("name", sa.String(200), nullable=False))
    op.create_table(
        "tickets",
        *_shared(),
        _project(),
        sa.Column("title", sa.String(300), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("priority", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
    )
    op.create_index("ix_tickets_project_id_status", "tickets", ["project_id", "status"])
    op.create_table(
        "imports",
        *_shared(),
        _project(),
        sa.Column("filename", sa.String(200), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("rows_total", sa.Integer, nullable=False),
        sa.Column("rows_done", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("imports", "tickets", "projects"):
        op.drop_table(table)


def _shared() -> list[sa.Column[object]]:
    return [
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False, index=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
    ]


def _counters() -> list[sa.Column[object]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in ("open_tickets", "closed_tickets")]


def _project() -> sa.Column[object]:
    return sa.Column("project_id", sa.Uuid, sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False)
