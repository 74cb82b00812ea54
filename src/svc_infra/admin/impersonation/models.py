"""The table of impersonations."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, UtcDateTime

MAX_USER_ID_CHARACTERS = 64
MAX_REASON_CHARACTERS = 500

_ALIVE: dict[str, Any] = {"postgresql_where": text("ended_at IS NULL"), "sqlite_where": text("ended_at IS NULL")}


class Impersonation(Base):
    """That one login of an admin acts as a user. A login acts as one user at a time: the database itself sees to it.

    Attributes:
        id: Random; the nonce of the token.
        session_id: The admin's login, with which it ends.
        actor_id: The admin.
        target_id: The user: an account's id, or an id of the app's own.
        read_only: Whether nothing can be changed meanwhile.
        ended_at: Once set, the token is not accepted again.
        end_reason: `manual`, `expired`, or what else has ended it.
    """

    __tablename__ = "svc_impersonations"
    __table_args__ = (
        Index("uq_svc_impersonations_alive", "session_id", unique=True, **_ALIVE),
        Index("ix_svc_impersonations_target", "target_id", **_ALIVE),
        Index("ix_svc_impersonations_expiry", "expires_at", **_ALIVE),
    )

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("svc_sessions.id", ondelete="CASCADE"), index=True)
    actor_id: Mapped[UUID]
    target_id: Mapped[str] = mapped_column(String(MAX_USER_ID_CHARACTERS))
    reason: Mapped[str] = mapped_column(String(MAX_REASON_CHARACTERS))
    read_only: Mapped[bool]
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    end_reason: Mapped[str | None] = mapped_column(String(64))
