"""The tables of jobs, queues and limits, and how a row becomes a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import orjson
import sqlalchemy as sa

from svc_infra.db.columns import Base, UtcDateTime
from svc_infra.jobs.job import Job, JobState, read_object, read_result
from svc_infra.jobs.queue import QueueInfo

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
    sa.Column("tenant", Identifier, nullable=False, server_default=""),
    sa.Column("version", sa.SmallInteger, nullable=False, server_default="1"),
    sa.Column("fingerprint", sa.String(64), nullable=False, server_default=""),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("limit_key", Identifier, nullable=False, server_default=""),  # '' without a limit: no index has NULLs
    sa.Column("limit_concurrency", sa.Integer),
    sa.Column("limit_rate", sa.Integer),
    sa.Column("limit_period_seconds", sa.Double),
    sa.Column("rank", sa.BigInteger, nullable=False, server_default="0"),  # `turns.rank_of`
)

svc_job_queues = sa.Table(
    "svc_job_queues",
    Base.metadata,
    sa.Column("name", Identifier, primary_key=True),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("concurrency", sa.Integer),
    sa.Column("rate", sa.Integer),
    sa.Column("period_seconds", sa.Double, nullable=False, server_default="60"),
    sa.Column("weights", sa.Text, nullable=False, server_default="{}"),
)

# Locked by whoever starts jobs of the key, so that two claims cannot both take the last place.
svc_job_limits = sa.Table(
    "svc_job_limits",
    Base.metadata,
    sa.Column("key", Identifier, primary_key=True),
    sa.Column("due", sa.BigInteger, nullable=False),  # `turns.Gate.due`
)


def _index(name: str, *columns: Any, where: str, unique: bool = False) -> None:
    condition = sa.text(where)
    sa.Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


_c = svc_jobs.c
_index("uq_svc_jobs_unique_key", _c.unique_key, where="unique_key IS NOT NULL", unique=True)
_index("ix_svc_jobs_ready", _c.queue, _c.tenant, _c.limit_key, _c.rank, _c.id, where="state = 'ready'")
_index("ix_svc_jobs_scheduled", _c.queue, _c.available_at, where="state = 'scheduled'")
_index("ix_svc_jobs_running", _c.queue, _c.lease_expires_at, where="state = 'running'")
_index("ix_svc_jobs_limited", _c.limit_key, where="state = 'running' AND limit_key <> ''")
_index("ix_svc_jobs_finished", _c.finished_at, where="state IN ('succeeded', 'cancelled')")
_index("ix_svc_jobs_dead", _c.finished_at, where="state = 'dead'")
sa.Index("ix_svc_jobs_created_at", _c.created_at)

JOB_COLUMNS = tuple(field.name for field in fields(Job))
"""The columns that `job_of` needs, in the order that makes it fast."""


def job_of(row: Sequence[Any]) -> Job:
    """The job of a row of `JOB_COLUMNS`; whatever else is at its end does not matter."""
    values = dict(zip(JOB_COLUMNS, row, strict=False))
    values["state"] = state_of(values["state"])
    values["payload"] = read_object(values["payload"])
    values["context"] = read_object(values["context"])
    values["result"] = read_result(values["result"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    values["limit_key"] = values["limit_key"] or None
    return Job(**values)


def state_of(stored: str) -> JobState:
    """The state that a stored one means."""
    return JobState.READY if stored == SCHEDULED else JobState(stored)


def info_of(row: Mapping[str, Any]) -> QueueInfo:
    """How a queue is configured, from its row."""
    return QueueInfo(**{**row, "paused": bool(row["paused"]), "weights": orjson.loads(row["weights"])})
