"""Searches of the audit trail, and of the token that a login goes on with, are answered by indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_searches"
down_revision = "0020_key_rates"

_ENTRIES = "svc_audit_entries"
_BEFORE = {"actor": ["tenant_id", "actor_id", "sequence"], "target": ["tenant_id", "target", "sequence"]}
_NOW = ("tenant_id", "actor_id", "target", "action")
_ALIVE = "uq_svc_refresh_tokens_alive"


def upgrade() -> None:
    """Replace the indexes of the trail, and add that of the tokens."""
    for name in _BEFORE:
        op.drop_index(f"ix_{_ENTRIES}_{name}", _ENTRIES)
    for column in _NOW:
        op.create_index(f"ix_{_ENTRIES}_{column}", _ENTRIES, [column, "id"])
    acted = sa.text("acting_as <> ''")
    name = f"ix_{_ENTRIES}_acting_as"
    op.create_index(name, _ENTRIES, ["acting_as", "id"], postgresql_where=acted, sqlite_where=acted)
    unused = sa.text("used_at IS NULL")
    op.create_index(
        _ALIVE, "svc_refresh_tokens", ["session_id"], unique=True, postgresql_where=unused, sqlite_where=unused
    )


def downgrade() -> None:
    """Put them back."""
    op.drop_index(_ALIVE, "svc_refresh_tokens")
    for column in (*_NOW, "acting_as"):
        op.drop_index(f"ix_{_ENTRIES}_{column}", _ENTRIES)
    for name, columns in _BEFORE.items():
        op.create_index(f"ix_{_ENTRIES}_{name}", _ENTRIES, columns)
