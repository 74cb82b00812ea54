"""Accounts: register and log in."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from uuid import UUID

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import ConflictError, InvalidCredentialsError, ValidationError
from svc_infra.security.models import User
from svc_infra.security.passwords import PasswordHasher, PasswordPolicy
from svc_infra.security.sessions import Device, Sessions, TokenPair
from svc_infra.types import Clock, SystemClock, new_id

MAX_EMAIL_CHARACTERS = 254
"""The longest address that mail can be sent to (RFC 3696, erratum 1690)."""


class Accounts:
    """The accounts of one app.

    Args:
        db: Where they are kept.
        hasher: Hashes and verifies their passwords.
        sessions: Opens their logins.
        policy: Which passwords are accepted.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        hasher: PasswordHasher,
        sessions: Sessions,
        *,
        policy: PasswordPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._hasher = hasher
        self._sessions = sessions
        self._policy = policy or PasswordPolicy()
        self._clock = clock or SystemClock()

    async def register(self, session: AsyncSession, *, email: str, password: str, roles: Collection[str] = ()) -> User:
        """Make an account in this unit of work.

        Args:
            session: The caller's unit of work; nothing is asked of the database before the password is hashed.
            email: The address, in any spelling of it.
            password: What `PasswordPolicy` accepts.
            roles: Roles of the new account; never taken from a request.

        Raises:
            ValidationError: The address or the password is not acceptable.
            ConflictError: The address has an account. Whoever registers can learn that much.
            RateLimitedError: Too many passwords are being hashed.
        """
        address = normalized_email(email)
        self._policy.check(password, email=address)
        password_hash = await self._hasher.hash(password)
        now = self._clock.now()
        user = User(
            id=new_id(),
            email=address,
            password_hash=password_hash,
            is_active=True,
            is_verified=False,
            roles=list(roles),
            created_at=now,
            updated_at=now,
        )
        try:
            async with session.begin_nested():  # the caller's unit of work survives the refusal
                session.add(user)
        except IntegrityError:
            raise ConflictError("An account with this e-mail address already exists.") from None
        return user

    async def login(self, *, email: str, password: str, device: Device | None = None) -> TokenPair:
        """Verify a password and open a login, in a unit of work of its own; a refusal changes nothing.

        An unknown address, a wrong password and a disabled account get the same answer for the same work.

        Raises:
            InvalidCredentialsError: The two do not open an account.
            ValidationError: The address is not an e-mail address.
            RateLimitedError: Too many passwords are being verified.
        """
        address = normalized_email(email)
        async with self._db.session(read_only=True) as session:
            user = (await session.execute(select(User).where(User.email == address))).scalar_one_or_none()
        stored = user.password_hash if user is not None else None
        verification = await self._hasher.verify(password, stored)
        if user is None or not verification.matches or not user.is_active:
            raise InvalidCredentialsError
        async with self._db.session() as session:
            # The account as it was verified: a password changed or an account disabled meanwhile is refused.
            same = (User.id == user.id, User.password_hash == stored, User.is_active)
            changes = {"last_login_at": self._clock.now(), "password_hash": verification.new_hash or stored}
            if await session.scalar(update(User).where(*same).values(changes).returning(User.id)) is None:
                raise InvalidCredentialsError
            return await self._sessions.open(session, user.id, device or Device())

    async def get(self, session: AsyncSession, user_id: UUID) -> User | None:
        """The account, or None."""
        return await session.get(User, user_id)


def normalized_email(value: str) -> str:
    """The one form in which an address is stored and compared.

    Trimmed, compatibility characters replaced (NFKC), lower case, the domain in Unicode (UTS 46): however someone types
    the address, it names one account, and two addresses that look alike for those reasons cannot name two.

    Raises:
        ValidationError: It is not an address that mail can be sent to.
    """
    text = unicodedata.normalize("NFKC", value.strip()) if len(value) <= 2 * MAX_EMAIL_CHARACTERS else value
    try:
        address = validate_email(text.lower(), check_deliverability=False).normalized.lower()
    except (EmailNotValidError, UnicodeError):
        address = ""
    if not 0 < len(address.encode()) <= MAX_EMAIL_CHARACTERS:
        detail = "This is not an e-mail address."
        raise ValidationError(detail, errors=[{"pointer": "#/email", "detail": detail}])
    return address
