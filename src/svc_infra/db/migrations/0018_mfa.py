"""Second factors, and how and when each login was proven."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from svc_infra.db.columns import UtcDateTime

revision = "0018_mfa"
down_revision = "0017_oauth"


def upgrade() -> None:
    """Create the tables, and say of older logins what is known: nothing of how, and when they began."""
    op.add_column("svc_sessions", sa.Column("methods", sa.String(64), nullable=False, server_default=""))
    # What a process of the version before opens while this one is rolled out was proven long ago: that is never fresh.
    long_ago = sa.text("'1970-01-01 00:00:00.000000+00:00'" if _is_postgres() else "'1970-01-01 00:00:00.000000'")
    op.add_column("svc_sessions", sa.Column("authenticated_at", UtcDateTime(), nullable=False, server_default=long_ago))
    op.execute(sa.text("UPDATE svc_sessions SET authenticated_at = created_at"))
    _create_factors()
    op.create_table(
        "svc_mfa_recovery_codes",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime()),
        _of_user("svc_mfa_recovery_codes"),
        sa.UniqueConstraint("user_id", "code_hash", name="uq_svc_mfa_recovery_codes_user_id_code_hash"),
    )
    op.create_table(
        "svc_mfa_challenges",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("flow_id", sa.Uuid()),
        sa.Column("browser_hash", sa.String(64)),
        sa.Column("note", sa.String(64), nullable=False),
        sa.Column("account_hash", sa.String(64)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime()),
        _of_user("svc_mfa_challenges"),
        sa.UniqueConstraint("secret_hash", name="uq_svc_mfa_challenges_secret_hash"),
    )
    op.create_index("ix_svc_mfa_challenges_user_id", "svc_mfa_challenges", ["user_id"])
    op.create_index("ix_svc_mfa_challenges_expires_at", "svc_mfa_challenges", ["expires_at"])


def _create_factors() -> None:
    op.create_table(
        "svc_mfa_factors",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("confirmed_at", UtcDateTime()),
        sa.Column("last_used_at", UtcDateTime()),
        sa.Column("secret", sa.Text()),
        sa.Column("last_step", sa.BigInteger()),
        sa.Column("credential_id", sa.String(1364)),
        sa.Column("public_key", sa.Text()),
        sa.Column("user_handle", sa.String(64)),
        sa.Column("sign_count", sa.BigInteger()),
        sa.Column("transports", sa.String(128)),
        _of_user("svc_mfa_factors"),
        sa.UniqueConstraint("credential_id", name="uq_svc_mfa_factors_credential_id"),
    )
    op.create_index("ix_svc_mfa_factors_user_id", "svc_mfa_factors", ["user_id"])


def _of_user(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id"], [f"{_users_table()}.id"], name=f"fk_{table}_user_id", ondelete="CASCADE"
    )


def _users_table() -> str:
    """The table that logins refer to: the library's own, or the one that the app has put in its place."""
    keys = sa.inspect(op.get_bind()).get_foreign_keys("svc_sessions")
    return next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"])


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def downgrade() -> None:
    """Drop them. Both engines drop a column in place: copying the table would end every login of SQLite's."""
    for table in ("svc_mfa_challenges", "svc_mfa_recovery_codes", "svc_mfa_factors"):
        op.drop_table(table)
    op.drop_column("svc_sessions", "authenticated_at")
    op.drop_column("svc_sessions", "methods")
