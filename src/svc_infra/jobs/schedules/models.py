"""The tables of schedules and of their ticks."""

from __future__ import annotations

import sqlalchemy as sa

from svc_infra.db.columns import Base, UtcDateTime
from svc_infra.jobs.sql.models import Identifier

svc_schedules = sa.Table(
    "svc_schedules",
    Base.metadata,
    sa.Column("name", Identifier, primary_key=True),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("declared", sa.Text),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("paused_at", UtcDateTime),
    sa.Column("decided_until", UtcDateTime, nullable=False),
    sa.Column("explained_until", UtcDateTime, nullable=False),
    sa.Column("waiting_due", UtcDateTime),
    sa.Column("job_id", sa.String(200)),
    sa.Column("job_at", UtcDateTime),
)

# The primary key is what makes a tick unique. No foreign key: ticks outlive a schedule that is deleted and made again.
svc_schedule_ticks = sa.Table(
    "svc_schedule_ticks",
    Base.metadata,
    sa.Column("schedule", Identifier, primary_key=True),
    sa.Column("due", UtcDateTime, primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("job_id", sa.String(200)),
    sa.Column("missed", sa.Integer, nullable=False),
    sa.Column("missed_since", UtcDateTime),
    sa.Column("reason", sa.String(16)),
    sa.Column("decided_at", UtcDateTime, nullable=False, index=True),
)
