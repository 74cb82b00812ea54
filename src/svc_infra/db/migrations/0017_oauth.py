"""Logins with other providers: who an account is elsewhere, and the states of logins that are over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0017_oauth"
down_revision = "0016_organizations"


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "svc_oauth_identities",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("email", sa.String(320)),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("last_login_at", UtcDateTime()),
        sa.Column("access_token", sa.Text()),
        sa.Column("refresh_token", sa.Text()),
        sa.Column("token_expires_at", UtcDateTime()),
        sa.ForeignKeyConstraint(
            ["user_id"], [f"{_users_table()}.id"], name="fk_svc_oauth_identities_user_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("provider", "issuer", "subject", name="uq_svc_oauth_identities_provider_issuer_subject"),
    )
    op.create_index("ix_svc_oauth_identities_user_id", "svc_oauth_identities", ["user_id"])
    op.create_table(
        "svc_oauth_spent_states",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
    )
    op.create_index("ix_svc_oauth_spent_states_expires_at", "svc_oauth_spent_states", ["expires_at"])


def _users_table() -> str:
    """The table that logins refer to: the library's own, or the one that the app has put in its place."""
    keys = sa.inspect(op.get_bind()).get_foreign_keys("svc_sessions")
    return next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("svc_oauth_spent_states", "svc_oauth_identities"):
        op.drop_table(table)
