"""The room's tables: entries, which are never changed, and the anchor of each chain of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Index, String, Text, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, UtcDateTime

MAX_TARGET_CHARACTERS = 200

_IMPERSONATED: dict[str, Any] = {
    "postgresql_where": text("acting_as <> ''"),
    "sqlite_where": text("acting_as <> ''"),
}


class AuditEntry(Base):
    """Something that someone did. The database itself refuses to change or delete it.

    Attributes:
        tenant_id: Whose chain it belongs to; empty for the service's own.
        sequence: Its place in the chain, from 1, without gaps.
        action: What was done, such as `session.opened`.
        outcome: `success` or `failure`.
        actor_id: Who did it; empty for somebody unknown and for the service itself.
        acting_as: The user as whom an impersonating actor did it.
        api_key_id: The API key that it was done with; empty for a login.
        target: To what, such as `user:<id>`.
        before, after: JSON of what changed, without secrets.
        key_id: The key that `mac` was made with.
        mac: HMAC-SHA256 over everything above and the `mac` of the entry before it.
    """

    __tablename__ = "svc_audit_entries"
    __table_args__ = (  # searches are answered in the order of the ids, so each index has them
        Index("ix_svc_audit_entries_tenant_id", "tenant_id", "id"),
        Index("ix_svc_audit_entries_actor_id", "actor_id", "id"),
        Index("ix_svc_audit_entries_acting_as", "acting_as", "id", **_IMPERSONATED),
        Index("ix_svc_audit_entries_target", "target", "id"),
        Index("ix_svc_audit_entries_action", "action", "id"),
    )

    tenant_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[UUID] = mapped_column(Uuid, unique=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    action: Mapped[str] = mapped_column(String(100))
    outcome: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str] = mapped_column(String(64))
    acting_as: Mapped[str] = mapped_column(String(64))
    api_key_id: Mapped[str] = mapped_column(String(64), server_default="")
    target: Mapped[str] = mapped_column(String(MAX_TARGET_CHARACTERS))
    client_ip: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(128))
    trace_id: Mapped[str] = mapped_column(String(32))
    before: Mapped[str | None] = mapped_column(Text)
    after: Mapped[str | None] = mapped_column(Text)
    key_id: Mapped[str] = mapped_column(String(16))
    mac: Mapped[str] = mapped_column(String(64))


class AuditChain(Base):
    """The anchor of a chain: where it ends. Locked by whoever appends, so a chain has one writer at a time.

    Attributes:
        sequence, mac: Those of the last entry; 0 and empty before the first.
        key_id, seal: HMAC-SHA256 over the tenant and the two, and the key that it was made with.
    """

    __tablename__ = "svc_audit_chains"

    tenant_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    mac: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(16))
    seal: Mapped[str] = mapped_column(String(64))
