"""The room's tables: users, their logins, refresh tokens and links, organizations and who belongs to them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, ForeignKey, Index, String, UniqueConstraint, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.mutable import MutableList
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, HasTimestamps, UtcDateTime


class HasAccount(HasId, HasTimestamps):
    """What makes a model the app's users: `class Person(HasAccount, Base)`, given to `add_auth_users(user_model=...)`.

    Attributes:
        email: In the one form that `accounts.normalized_email` gives; unique.
        password_hash: argon2id in PHC form; None for an account that cannot log in with a password.
        is_active: A disabled account can neither log in nor use a token that it still has.
        is_verified: Whether the address was proven to be the user's.
        roles: Names in the app's `Policy`.
        disabled_reason: Why it is not active.
    """

    email: Mapped[str] = mapped_column(String(320), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    is_active: Mapped[bool] = mapped_column(default=True)
    is_verified: Mapped[bool] = mapped_column(default=False)
    # A type of its own: tracking changes inside the list would otherwise spread to every column of that type.
    roles: Mapped[list[str]] = mapped_column(
        MutableList.as_mutable(JSON().with_variant(JSONB(), "postgresql")), default=list
    )
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_reason: Mapped[str | None] = mapped_column(String(200))


class User(HasAccount, Base):
    """An account of the library's own kind.

    Attributes:
        full_name: What the user wants to be called.
    """

    __tablename__ = "svc_users"

    full_name: Mapped[str | None] = mapped_column(String(200))


class Session(HasId, Base):
    """One login, and the family of refresh tokens that descend from it.

    Attributes:
        ip_hash: Keyed hash of the address that logged in; empty when unknown.
        methods: How it was proven, with blanks: the `amr` of its tokens.
        authenticated_at: When it was last proven: the `auth_time` of its tokens.
        last_seen_at: When it was last refreshed.
        expires_at: Its absolute end; no token of the family outlives it.
        revoked_at: Once set, no token of the family is accepted again.
    """

    __tablename__ = "svc_sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    user_agent: Mapped[str] = mapped_column(String(256))
    ip_hash: Mapped[str] = mapped_column(String(64))
    methods: Mapped[str] = mapped_column(String(64), default="")
    authenticated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoke_reason: Mapped[str | None] = mapped_column(String(64))


_UNUSED: dict[str, Any] = {"postgresql_where": text("used_at IS NULL"), "sqlite_where": text("used_at IS NULL")}


class RefreshToken(HasId, Base):
    """One refresh token of a login, kept as a hash; used tokens stay, so that a replay is recognised.

    A login has one that was not used: the database itself sees to it.

    Attributes:
        token_hash: SHA-256 of the token, in hex.
        parent_id: The token that it replaced. Unique: the database itself refuses a second successor. No foreign key:
            to delete a long chain of them one by one is more than SQLite can do.
        used_at: When it was exchanged for its successor.
    """

    __tablename__ = "svc_refresh_tokens"
    __table_args__ = (Index("uq_svc_refresh_tokens_alive", "session_id", unique=True, **_UNUSED),)

    session_id: Mapped[UUID] = mapped_column(ForeignKey("svc_sessions.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    parent_id: Mapped[UUID | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AccountLink(HasId, Base):
    """A link that was mailed: whoever has it may do one thing, once.

    Attributes:
        user_id: Whose account it is for; None for a decoy, which was made for an address without one and opens nothing.
        kind: What it is for.
        token_hash: SHA-256 of what the link carries, in hex.
        email: The address that it was sent to.
    """

    __tablename__ = "svc_account_links"

    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    email: Mapped[str] = mapped_column(String(320))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Attempts(Base):
    """Attempts to log in that did not succeed, for one account or one network.

    Attributes:
        key: Keyed hash of the account's address or of the network.
        failures: How many in a row.
        locked_until: Nothing is tried before then.
    """

    __tablename__ = "svc_login_attempts"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class OrganizationRole(StrEnum):
    """What a member may do in an organization; an application may store names of its own beside these."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class Organization(HasId, HasTimestamps, Base):
    """A tenant: `str(organization.id)` is the tenant id of everything that it owns."""

    __tablename__ = "svc_organizations"

    name: Mapped[str] = mapped_column(String(200))
    slug: Mapped[str] = mapped_column(String(63), unique=True)


class Membership(HasId, HasTimestamps, Base):
    """That a user belongs to an organization, in one role."""

    __tablename__ = "svc_memberships"
    __table_args__ = (UniqueConstraint("organization_id", "user_id"),)

    organization_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("svc_organizations.id", ondelete="CASCADE"))
    user_id: Mapped[UUID] = mapped_column(Uuid, ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    role: Mapped[str] = mapped_column(String(32))
