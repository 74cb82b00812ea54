"""What accounts need beyond passwords and logins: mailed links, failed attempts, a name, why one is disabled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0011_accounts"
down_revision = "0010_audit"


def upgrade() -> None:
    """Create them."""
    op.add_column("svc_users", sa.Column("full_name", sa.String(200)))
    op.add_column("svc_users", sa.Column("disabled_reason", sa.String(200)))
    op.create_table(
        "svc_account_links",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime()),
        sa.ForeignKeyConstraint(
            ["user_id"], [f"{_users_table()}.id"], name="fk_svc_account_links_user_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("token_hash", name="uq_svc_account_links_token_hash"),
    )
    op.create_index("ix_svc_account_links_user_id", "svc_account_links", ["user_id"])
    op.create_index("ix_svc_account_links_expires_at", "svc_account_links", ["expires_at"])
    op.create_table(
        "svc_login_attempts",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", UtcDateTime(), nullable=False),
        sa.Column("locked_until", UtcDateTime()),
    )
    op.create_index("ix_svc_login_attempts_last_at", "svc_login_attempts", ["last_at"])


def _users_table() -> str:
    """The table that logins refer to: the library's own, or the one that the app has put in its place."""
    keys = sa.inspect(op.get_bind()).get_foreign_keys("svc_sessions")
    return next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("svc_login_attempts", "svc_account_links"):
        op.drop_table(table)
    with op.batch_alter_table("svc_users") as users:
        users.drop_column("disabled_reason")
        users.drop_column("full_name")
