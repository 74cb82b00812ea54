"""Jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0003_jobs"
down_revision = "0002_security"

_IDENTIFIER = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
_INDEXES: dict[str, tuple[list[str | sa.TextClause], str]] = {
    "ix_svc_jobs_ready": (["queue", sa.text("priority DESC"), "available_at", "id"], "state = 'ready'"),
    "ix_svc_jobs_scheduled": (["queue", "available_at"], "state = 'scheduled'"),
    "ix_svc_jobs_running": (["lease_expires_at"], "state = 'running'"),
    "ix_svc_jobs_finished": (["finished_at"], "state IN ('succeeded', 'cancelled')"),
    "ix_svc_jobs_dead": (["created_at"], "state = 'dead'"),
    "uq_svc_jobs_unique_key": (["unique_key"], "unique_key IS NOT NULL"),
}


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "svc_jobs",
        sa.Column("id", _IDENTIFIER, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("queue", _IDENTIFIER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("backoff_seconds", sa.Double(), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("unique_key", sa.String(200), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("available_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("token", sa.String(36), nullable=True),
        sa.Column("worker_id", sa.String(200), nullable=True),
        sa.Column("lease_expires_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("progress_done", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("progress_total", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("result", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_svc_jobs"),
    )
    op.create_index("ix_svc_jobs_created_at", "svc_jobs", ["created_at"])
    for name, (columns, condition) in _INDEXES.items():
        op.create_index(
            name,
            "svc_jobs",
            columns,
            unique=name.startswith("uq_"),
            postgresql_where=sa.text(condition),
            sqlite_where=sa.text(condition),
        )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("svc_jobs")
