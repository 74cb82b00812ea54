"""The audit trail is searched by whoever did something, whatever the tenant, without reading all of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_audit_search"
down_revision = "0020_key_rates"

_ENTRIES = "svc_audit_entries"
_BEFORE = {"actor": ["tenant_id", "actor_id", "sequence"], "target": ["tenant_id", "target", "sequence"]}
_NOW = ("tenant_id", "actor_id", "target", "action")
_IMPERSONATED = sa.text("acting_as <> ''")


def upgrade() -> None:
    """Replace the indexes."""
    for name in _BEFORE:
        op.drop_index(f"ix_{_ENTRIES}_{name}", _ENTRIES)
    for column in _NOW:
        op.create_index(f"ix_{_ENTRIES}_{column}", _ENTRIES, [column, "id"])
    op.create_index(
        f"ix_{_ENTRIES}_acting_as",
        _ENTRIES,
        ["acting_as", "id"],
        postgresql_where=_IMPERSONATED,
        sqlite_where=_IMPERSONATED,
    )


def downgrade() -> None:
    """Put them back."""
    for column in (*_NOW, "acting_as"):
        op.drop_index(f"ix_{_ENTRIES}_{column}", _ENTRIES)
    for name, columns in _BEFORE.items():
        op.create_index(f"ix_{_ENTRIES}_{name}", _ENTRIES, columns)
