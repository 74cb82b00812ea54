"""The table of the idempotency keys."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base


class IdempotencyRow(Base):
    """A key that has been claimed: in progress while `status` is null, done from then on.

    `key` and `fingerprint` are digests: neither the client's key nor its payload can be read here. `token` names one
    claim; it changes when another request takes the key over.
    """

    __tablename__ = "svc_idempotency_keys"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    token: Mapped[str] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    status: Mapped[int | None]
    headers: Mapped[str | None] = mapped_column(Text)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
