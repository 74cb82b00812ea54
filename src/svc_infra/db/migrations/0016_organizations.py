"""Invitations to organizations, and teams in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0016_organizations"
down_revision = "0015_api_keys"


def upgrade() -> None:
    """Create the tables."""
    users = _users_table()
    op.create_table(
        "svc_invitations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("invited_by", sa.Uuid(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("accepted_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_svc_invitations"),
        _belongs("svc_invitations", "organization_id", "svc_organizations"),
        _belongs("svc_invitations", "invited_by", users),
        sa.UniqueConstraint("token_hash", name="uq_svc_invitations_token_hash"),
    )
    op.create_index("ix_svc_invitations_organization_id", "svc_invitations", ["organization_id"])
    op.create_index("ix_svc_invitations_invited_by", "svc_invitations", ["invited_by"])
    op.create_table(
        "svc_teams",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_svc_teams"),
        _belongs("svc_teams", "organization_id", "svc_organizations"),
        sa.UniqueConstraint("organization_id", "name", name="uq_svc_teams_organization_id_name"),
    )
    op.create_table(
        "svc_team_members",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_svc_team_members"),
        _belongs("svc_team_members", "team_id", "svc_teams"),
        _belongs("svc_team_members", "user_id", users),
        sa.UniqueConstraint("team_id", "user_id", name="uq_svc_team_members_team_id_user_id"),
    )
    op.create_index("ix_svc_team_members_user_id", "svc_team_members", ["user_id"])


def _belongs(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{other}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")


def _users_table() -> str:
    """The table that logins refer to: the library's own, or the one that the app has put in its place."""
    keys = sa.inspect(op.get_bind()).get_foreign_keys("svc_sessions")
    return next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("svc_team_members", "svc_teams", "svc_invitations"):
        op.drop_table(table)
