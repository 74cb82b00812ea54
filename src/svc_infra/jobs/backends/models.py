"""The table of jobs, and the statements that a queue runs on it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from svc_infra.db.columns import Base, UtcDateTime

SCHEDULED = "scheduled"
"""What `state` holds for a ready job whose time has not come: the index of what can be claimed stays free of it."""

# PostgreSQL compares ids byte by byte, as SQLite does, and faster than by the rules of a language.
Identifier = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")

# Payload, context and result are text and not JSONB: a worker reads back exactly what was serialised.
svc_jobs = sa.Table(
    "svc_jobs",
    Base.metadata,
    sa.Column("id", Identifier, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("queue", Identifier, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("backoff_seconds", sa.Double, nullable=False),
    sa.Column("timeout_seconds", sa.Double),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("unique_key", sa.String(200)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("available_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("token", sa.String(36)),
    sa.Column("worker_id", sa.String(200)),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("last_error", sa.Text),
    sa.Column("progress_done", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("progress_total", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("result", sa.Text),
)


def _index(name: str, *columns: Any, where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    sa.Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


_c = svc_jobs.c
_index("uq_svc_jobs_unique_key", _c.unique_key, where="unique_key IS NOT NULL", unique=True)
_index("ix_svc_jobs_ready", _c.queue, _c.priority.desc(), _c.available_at, _c.id, where="state = 'ready'")
_index("ix_svc_jobs_scheduled", _c.queue, _c.available_at, where="state = 'scheduled'")
_index("ix_svc_jobs_running", _c.lease_expires_at, where="state = 'running'")
_index("ix_svc_jobs_finished", _c.finished_at, where="state IN ('succeeded', 'cancelled')")
_index("ix_svc_jobs_dead", _c.created_at, where="state = 'dead'")
sa.Index("ix_svc_jobs_created_at", _c.created_at)
