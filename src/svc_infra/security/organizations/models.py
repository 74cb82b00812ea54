"""The tables of invitations and teams; organizations and memberships are in `security.models`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, HasTimestamps, UtcDateTime


class Invitation(HasId, Base):
    """A mailed link: who has proven to own the address may become a member, once.

    Attributes:
        email: In the one form that `accounts.normalized_email` gives.
        token_hash: SHA-256 of what the link carries, in hex.
        invited_by: Who invited; the invitation ends with that membership.
    """

    __tablename__ = "svc_invitations"

    organization_id: Mapped[UUID] = mapped_column(ForeignKey("svc_organizations.id", ondelete="CASCADE"), index=True)
    email: Mapped[str] = mapped_column(String(320))
    role: Mapped[str] = mapped_column(String(32))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    invited_by: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    accepted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Team(HasId, HasTimestamps, Base):
    """Some members of an organization, by a name."""

    __tablename__ = "svc_teams"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    organization_id: Mapped[UUID] = mapped_column(ForeignKey("svc_organizations.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))


class TeamMember(HasId, Base):
    """That a member of the organization belongs to a team."""

    __tablename__ = "svc_team_members"
    __table_args__ = (UniqueConstraint("team_id", "user_id"),)

    team_id: Mapped[UUID] = mapped_column(ForeignKey("svc_teams.id", ondelete="CASCADE"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
