"""The tables: second factors, recovery codes, and what is under way."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.columns import Base, HasId, UtcDateTime


class Factor(HasId, Base):
    """Something that an account can prove beside its password.

    Attributes:
        kind: Which of the classes below it is.
        name: What its owner calls it.
        confirmed_at: When it was first proven; until then it is good for nothing.
    """

    __tablename__ = "svc_mfa_factors"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_abstract": True}  # noqa: RUF012 - as SQLAlchemy reads it

    user_id: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    confirmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TotpFactor(Factor):
    """An authenticator app (RFC 6238).

    Attributes:
        secret: What the app shares with us, sealed.
        last_step: The time step of the last code that was accepted; no code of it or of an earlier one is again.
    """

    __mapper_args__ = {"polymorphic_identity": "totp"}  # noqa: RUF012

    secret: Mapped[str | None] = mapped_column(Text, deferred=True)
    last_step: Mapped[int | None] = mapped_column(BigInteger)


class Passkey(Factor):
    """A passkey or a security key (Web Authentication). Binary values are base64url.

    Attributes:
        credential_id: What the authenticator calls it.
        public_key: What its signatures are verified with, in COSE form.
        user_handle: What the authenticator calls the account: random, the same for all passkeys of one account.
        sign_count: Its counter; one that does not grow tells of a copy. 0 for those that do not count.
        transports: How browsers reach it, with blanks.
    """

    __mapper_args__ = {"polymorphic_identity": "webauthn"}  # noqa: RUF012

    credential_id: Mapped[str | None] = mapped_column(String(1364), unique=True)
    public_key: Mapped[str | None] = mapped_column(Text)
    user_handle: Mapped[str | None] = mapped_column(String(64))
    sign_count: Mapped[int | None] = mapped_column(BigInteger)
    transports: Mapped[str | None] = mapped_column(String(128))


class EmailFactor(Factor):
    """The account's address, to which codes are mailed."""

    __mapper_args__ = {"polymorphic_identity": "email"}  # noqa: RUF012


class RecoveryCode(HasId, Base):
    """One recovery code.

    Attributes:
        code_hash: SHA-256 of it, in hex: 120 random bits need no slower hash.
    """

    __tablename__ = "svc_mfa_recovery_codes"
    __table_args__ = (UniqueConstraint("user_id", "code_hash"),)

    user_id: Mapped[UUID] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"))
    code_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Challenge(HasId, Base):
    """Something under way that can be ended once: a second step, what an authenticator must sign, a code in a mail.

    Attributes:
        kind: What it is.
        secret_hash: Hash of what ends it.
        user_id: Whose; None where a passkey will say it.
        flow_id: The second step or the login that it belongs to.
        browser_hash: SHA-256 of what a cookie of the browser must show.
        note: What is needed at its end: how the first step was proven, or the user handle of a new passkey.
        account_hash: SHA-256 of the account's password hash when the first factor was proven.
        attempts: How often it was tried.
    """

    __tablename__ = "svc_mfa_challenges"

    kind: Mapped[str] = mapped_column(String(16))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("svc_users.id", ondelete="CASCADE"), index=True)
    flow_id: Mapped[UUID | None]
    browser_hash: Mapped[str | None] = mapped_column(String(64))
    note: Mapped[str] = mapped_column(String(64), default="")
    account_hash: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
