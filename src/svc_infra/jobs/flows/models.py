"""The tables of flows and of their steps."""

from __future__ import annotations

import sqlalchemy as sa

from svc_infra.db.columns import Base, UtcDateTime
from svc_infra.jobs.sql.models import Identifier

svc_flows = sa.Table(
    "svc_flows",
    Base.metadata,
    sa.Column("id", Identifier, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("active", sa.Integer, nullable=False),
    sa.Column("succeeded", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("ignored", sa.Integer, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("tenant", Identifier, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Column("finished_at", UtcDateTime, index=True),
)

# The primary key is what makes a step unique. JSON is text: it is read back as it was written, and never searched.
svc_flow_steps = sa.Table(
    "svc_flow_steps",
    Base.metadata,
    sa.Column("flow_id", Identifier, primary_key=True),
    sa.Column("name", Identifier, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("task", sa.String(200), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("dependents", sa.Text, nullable=False),
    sa.Column("on_failure", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("blockers", sa.Integer, nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("enqueued_at", UtcDateTime),
    sa.Column("look_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Index(
        "ix_svc_flow_steps_enqueued",
        "look_at",
        postgresql_where=sa.text("state = 'enqueued'"),
        sqlite_where=sa.text("state = 'enqueued'"),
    ),
)
