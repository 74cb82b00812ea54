"""The tables: who an account is elsewhere, and the states of logins that are over."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, UtcDateTime
from svc_infra.security.cipher import EncryptedField


class OAuthIdentity(HasId, Base):
    """That an account belongs to whom a provider calls this.

    Attributes:
        provider: The provider's name in this app.
        issuer, subject: What the provider calls itself and the user; together they name one person.
        email: The user's address there, as it was last told.
        last_login_at: When it was last logged in with.
        access_token, refresh_token, token_expires_at: What the app may call the provider with, where it keeps that.
    """

    __tablename__ = "svc_oauth_identities"
    __table_args__ = (UniqueConstraint("provider", "issuer", "subject"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    provider: Mapped[str] = mapped_column(String(32))
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(320))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    access_token: Mapped[str | None] = mapped_column(EncryptedField("oauth_identities.access_token"), deferred=True)
    refresh_token: Mapped[str | None] = mapped_column(EncryptedField("oauth_identities.refresh_token"), deferred=True)
    token_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SpentState(Base):
    """The state of a login that a browser has come back from.

    Attributes:
        state_hash: SHA-256 of it, in hex.
        expires_at: From when on its cookie is too old anyway.
    """

    __tablename__ = "svc_oauth_spent_states"

    state_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
