"""Users, sessions, refresh tokens, organizations and memberships."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import Json, UtcDateTime

revision = "0002_security"
down_revision = "0001_outbox"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "svc_users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_verified", sa.Boolean(), nullable=False),
        sa.Column("roles", Json, nullable=False),
        sa.Column("last_login_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_svc_users"),
        sa.UniqueConstraint("email", name="uq_svc_users_email"),
    )
    _create_logins()
    _create_organizations()


def _create_logins() -> None:
    op.create_table(
        "svc_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.Column("ip_hash", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.Column("revoke_reason", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_svc_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["svc_users.id"], name="fk_svc_sessions_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_svc_sessions_user_id", "svc_sessions", ["user_id"])
    op.create_index("ix_svc_sessions_expires_at", "svc_sessions", ["expires_at"])
    op.create_table(
        "svc_refresh_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_svc_refresh_tokens"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["svc_sessions.id"], name="fk_svc_refresh_tokens_session_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["svc_refresh_tokens.id"], name="fk_svc_refresh_tokens_parent_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("token_hash", name="uq_svc_refresh_tokens_token_hash"),
        sa.UniqueConstraint("parent_id", name="uq_svc_refresh_tokens_parent_id"),
    )
    op.create_index("ix_svc_refresh_tokens_session_id", "svc_refresh_tokens", ["session_id"])


def _create_organizations() -> None:
    op.create_table(
        "svc_organizations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("slug", sa.String(63), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_svc_organizations"),
        sa.UniqueConstraint("slug", name="uq_svc_organizations_slug"),
    )
    op.create_table(
        "svc_memberships",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_svc_memberships"),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["svc_organizations.id"],
            name="fk_svc_memberships_organization_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["user_id"], ["svc_users.id"], name="fk_svc_memberships_user_id", ondelete="CASCADE"),
        sa.UniqueConstraint("organization_id", "user_id", name="uq_svc_memberships_organization_id_user_id"),
    )
    op.create_index("ix_svc_memberships_user_id", "svc_memberships", ["user_id"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("svc_memberships", "svc_organizations", "svc_refresh_tokens", "svc_sessions", "svc_users"):
        op.drop_table(table)
