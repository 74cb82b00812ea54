"""Jobs: tenants that take turns, limits, fingerprints, ageing and the configuration of queues."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006_jobs"
down_revision = "0005_idempotency"

_IDENTIFIER = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
_Indexes = dict[str, tuple[list[str | sa.TextClause], str]]
_OLD: _Indexes = {
    "ix_svc_jobs_ready": (["queue", sa.text("priority DESC"), "available_at", "id"], "state = 'ready'"),
    "ix_svc_jobs_running": (["lease_expires_at"], "state = 'running'"),
    "ix_svc_jobs_dead": (["created_at"], "state = 'dead'"),
}
_NEW: _Indexes = {
    "ix_svc_jobs_ready": (["queue", "tenant", "limit_key", "rank", "id"], "state = 'ready'"),
    "ix_svc_jobs_running": (["queue", "lease_expires_at"], "state = 'running'"),
    "ix_svc_jobs_dead": (["finished_at"], "state = 'dead'"),
    "ix_svc_jobs_limited": (["limit_key"], "state = 'running' AND limit_key <> ''"),
}
_RANK = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM available_at) * 1000000 AS BIGINT)",
    "sqlite": "CAST(strftime('%s', available_at) AS INTEGER) * 1000000",
}


def upgrade() -> None:
    """Add the columns and tables; jobs that wait keep their order."""
    for column in _columns():
        op.add_column("svc_jobs", column)
    op.execute(f"UPDATE svc_jobs SET rank = {_RANK[op.get_bind().dialect.name]} - priority * 60000000")  # noqa: S608
    op.execute("UPDATE svc_jobs SET finished_at = created_at WHERE state = 'dead' AND finished_at IS NULL")
    _reindex(_OLD, _NEW)
    op.create_table(
        "svc_job_queues",
        sa.Column("name", _IDENTIFIER, primary_key=True),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("rate", sa.Integer(), nullable=True),
        sa.Column("period_seconds", sa.Double(), nullable=False, server_default="60"),
        sa.Column("weights", sa.Text(), nullable=False, server_default="{}"),
    )
    op.create_table(
        "svc_job_limits",
        sa.Column("key", _IDENTIFIER, primary_key=True),
        sa.Column("due", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    """Drop them; limits no longer hold."""
    op.drop_table("svc_job_limits")
    op.drop_table("svc_job_queues")
    _reindex(_NEW, _OLD)
    for column in reversed(_columns()):
        op.drop_column("svc_jobs", column.name)


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("tenant", _IDENTIFIER, nullable=False, server_default=""),
        sa.Column("version", sa.SmallInteger(), nullable=False, server_default="1"),
        sa.Column("fingerprint", sa.String(64), nullable=False, server_default=""),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("limit_key", _IDENTIFIER, nullable=False, server_default=""),
        sa.Column("limit_concurrency", sa.Integer(), nullable=True),
        sa.Column("limit_rate", sa.Integer(), nullable=True),
        sa.Column("limit_period_seconds", sa.Double(), nullable=True),
        sa.Column("rank", sa.BigInteger(), nullable=False, server_default="0"),
    ]


def _reindex(former: _Indexes, then: _Indexes) -> None:
    for name in former:
        op.drop_index(name, table_name="svc_jobs")
    for name, (columns, condition) in then.items():
        where = sa.text(condition)
        op.create_index(name, "svc_jobs", columns, postgresql_where=where, sqlite_where=where)
