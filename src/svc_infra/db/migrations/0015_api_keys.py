"""API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import Json, UtcDateTime

revision = "0015_api_keys"
down_revision = "0011_accounts"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "svc_api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("organization_id", sa.Uuid()),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("replaced_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("revoke_reason", sa.String(64)),
        sa.Column("last_used_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_svc_api_keys"),
        sa.ForeignKeyConstraint(
            ["user_id"], [f"{_users_table()}.id"], name="fk_svc_api_keys_user_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["svc_organizations.id"], name="fk_svc_api_keys_organization_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("key_hash", name="uq_svc_api_keys_key_hash"),
        sa.CheckConstraint("user_id IS NOT NULL OR organization_id IS NOT NULL", name=op.f("ck_svc_api_keys_owner")),
    )
    op.create_index("ix_svc_api_keys_user_id", "svc_api_keys", ["user_id"])
    op.create_index("ix_svc_api_keys_organization_id", "svc_api_keys", ["organization_id"])


def _users_table() -> str:
    """The table that logins refer to: the library's own, or the one that the app has put in its place."""
    keys = sa.inspect(op.get_bind()).get_foreign_keys("svc_sessions")
    return next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("svc_api_keys")
