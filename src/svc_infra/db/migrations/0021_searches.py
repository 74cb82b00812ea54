"""Searches of the audit trail, and of the token that a login goes on with, are answered by indexes.

The tokens of a login do not refer to each other any more: SQLite deletes such a chain by recursion, and gives up after
a thousand of them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_searches"
down_revision = "0020_key_rates"

_ENTRIES = "svc_audit_entries"
_BEFORE = {"actor": ["tenant_id", "actor_id", "sequence"], "target": ["tenant_id", "target", "sequence"]}
_NOW = ("tenant_id", "actor_id", "target", "action")
_TOKENS = "svc_refresh_tokens"
_PARENT = "fk_svc_refresh_tokens_parent_id"
_ALIVE = "uq_svc_refresh_tokens_alive"


def upgrade() -> None:
    """Replace the indexes of the trail; of the tokens, drop the key and add an index."""
    for name in _BEFORE:
        op.drop_index(f"ix_{_ENTRIES}_{name}", _ENTRIES)
    for column in _NOW:
        op.create_index(f"ix_{_ENTRIES}_{column}", _ENTRIES, [column, "id"])
    acted = sa.text("acting_as <> ''")
    name = f"ix_{_ENTRIES}_acting_as"
    op.create_index(name, _ENTRIES, ["acting_as", "id"], postgresql_where=acted, sqlite_where=acted)
    with op.batch_alter_table(_TOKENS) as tokens:
        tokens.drop_constraint(_PARENT, type_="foreignkey")
    unused = sa.text("used_at IS NULL")
    op.create_index(_ALIVE, _TOKENS, ["session_id"], unique=True, postgresql_where=unused, sqlite_where=unused)


def downgrade() -> None:
    """Put them back."""
    op.drop_index(_ALIVE, _TOKENS)
    with op.batch_alter_table(_TOKENS) as tokens:
        tokens.create_foreign_key(_PARENT, _TOKENS, ["parent_id"], ["id"], ondelete="CASCADE")
    for column in (*_NOW, "acting_as"):
        op.drop_index(f"ix_{_ENTRIES}_{column}", _ENTRIES)
    for name, columns in _BEFORE.items():
        op.create_index(f"ix_{_ENTRIES}_{name}", _ENTRIES, columns)
