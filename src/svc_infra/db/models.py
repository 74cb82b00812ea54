"""The tables of the outbox and the inbox."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, Json


class OutboxRow(Base):
    """A message that has not been handled yet.

    `position` orders the messages: SQLite gives it out under its write lock, PostgreSQL under a lock per key.
    `attempts` counts the claims, so together with `position` it names one claim: the fencing token.
    """

    __tablename__ = "svc_outbox"
    __table_args__ = (
        Index("ix_svc_outbox_due", "topic", "available_at"),
        Index("ix_svc_outbox_key", "topic", "key", "position"),
        {"sqlite_autoincrement": True},
    )

    position: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True)
    id: Mapped[UUID] = mapped_column(unique=True)
    topic: Mapped[str] = mapped_column(String(100))
    key: Mapped[str | None] = mapped_column(String(200))
    payload: Mapped[Any] = mapped_column(Json)
    headers: Mapped[dict[str, Any]]
    attempts: Mapped[int]
    last_error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime]
    available_at: Mapped[datetime]


class InboxRow(Base):
    """A message that a consumer has handled."""

    __tablename__ = "svc_inbox"
    __table_args__ = (Index("ix_svc_inbox_received_at", "received_at"),)

    consumer: Mapped[str] = mapped_column(String(100), primary_key=True)
    message_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    received_at: Mapped[datetime]
