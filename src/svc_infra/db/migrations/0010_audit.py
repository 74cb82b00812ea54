"""The audit trail, which the database itself keeps from being changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0010_audit"
down_revision = "0009_flows"

_ENTRIES, _CHAINS = "svc_audit_entries", "svc_audit_chains"


def upgrade() -> None:
    """Create the tables and what guards them."""
    op.create_table(
        _ENTRIES,
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("actor_id", sa.String(64), nullable=False),
        sa.Column("acting_as", sa.String(64), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("client_ip", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column("before", sa.Text()),
        sa.Column("after", sa.Text()),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
        sa.UniqueConstraint("id", name="uq_svc_audit_entries_id"),
    )
    op.create_index("ix_svc_audit_entries_actor", _ENTRIES, ["tenant_id", "actor_id", "sequence"])
    op.create_index("ix_svc_audit_entries_target", _ENTRIES, ["tenant_id", "target", "sequence"])
    op.create_table(
        _CHAINS,
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgres()


def _guard_sqlite() -> None:
    refuse = "BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END"
    for table, event in ((_ENTRIES, "UPDATE"), (_ENTRIES, "DELETE"), (_CHAINS, "DELETE")):
        op.execute(f"CREATE TRIGGER {table}_{event.lower()} BEFORE {event} ON {table} {refuse}")
    backwards = "WHEN NEW.sequence < OLD.sequence OR NEW.tenant_id <> OLD.tenant_id"
    op.execute(f"CREATE TRIGGER {_CHAINS}_update BEFORE UPDATE ON {_CHAINS} {backwards} {refuse}")


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION svc_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'the audit trail is only ever added to' USING ERRCODE = 'restrict_violation'; END $$"
    )
    call = "EXECUTE FUNCTION svc_audit_refuse()"
    op.execute(f"CREATE TRIGGER {_ENTRIES}_change BEFORE UPDATE OR DELETE ON {_ENTRIES} FOR EACH ROW {call}")
    op.execute(f"CREATE TRIGGER {_CHAINS}_delete BEFORE DELETE ON {_CHAINS} FOR EACH ROW {call}")
    for table in (_ENTRIES, _CHAINS):
        op.execute(f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {call}")
    backwards = "WHEN (NEW.sequence < OLD.sequence OR NEW.tenant_id <> OLD.tenant_id)"
    op.execute(f"CREATE TRIGGER {_CHAINS}_update BEFORE UPDATE ON {_CHAINS} FOR EACH ROW {backwards} {call}")


def downgrade() -> None:
    """Drop them, and everything that they hold."""
    for table in (_ENTRIES, _CHAINS):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION svc_audit_refuse()")
