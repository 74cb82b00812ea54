"""The table of API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, Json, UtcDateTime
from svc_infra.errors import SvcInfraError


class ApiKey(HasId, Base):
    """A key, kept as a hash. It belongs to a user, or to an organization, whose service it is then.

    Attributes:
        user_id: Whose key it is; None for a service's.
        organization_id: Whose service it is; with a user, the only organization that the key is good for.
        hint: Its last characters, to tell keys apart.
        key_hash: HMAC-SHA256 of the key, in hex.
        scopes: What it is limited to; the owner's permissions limit it further whenever it is used.
        rate: How often it may be used, such as `100/minute`, in place of what its routes say; None for that.
        created_by: Who made it.
        replaced_at: Once set, another key has taken its place, and this one ends soon.
        last_used_at: To the minute.
    """

    __tablename__ = "svc_api_keys"
    __table_args__ = (CheckConstraint("user_id IS NOT NULL OR organization_id IS NOT NULL", name="owner"),)

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    organization_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("svc_organizations.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(String(100))
    hint: Mapped[str] = mapped_column(String(8))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[Any] = mapped_column(Json)
    rate: Mapped[str | None] = mapped_column(String(64))
    created_by: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    replaced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoke_reason: Mapped[str | None] = mapped_column(String(64))
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @property
    def owner_id(self) -> UUID:
        """The user, or the organization whose service it is."""
        owner_id = self.user_id or self.organization_id
        if owner_id is None:
            raise SvcInfraError("A key has no owner.")  # the table's constraint is gone
        return owner_id
