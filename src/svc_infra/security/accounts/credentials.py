"""What opens an account, and how it is changed: the password and the address, proven by a password or a mailed link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import BadRequestError, ConflictError, InvalidCredentialsError
from svc_infra.security.accounts.accounts import Accounts, Desk
from svc_infra.security.accounts.email import normalized_email
from svc_infra.security.accounts.links import LinkKind
from svc_infra.security.models import HasAccount
from svc_infra.security.passwords.policy import refused
from svc_infra.security.remembered import SAYS_WHAT_CHANGED

PASSWORD_CHANGED = "password_changed"  # noqa: S105 - the name of a mail
EMAIL_CHANGED = "email_changed"


class Credentials:
    """The passwords and addresses of one app's accounts. Each call is a unit of work of its own.

    Whoever asks for a link learns nothing: an address without an account gets the same answer for the same work.

    Args:
        desk: What it works with.
        accounts: Proves who knows a password.
    """

    def __init__(self, desk: Desk, accounts: Accounts) -> None:
        self._desk = desk
        self._accounts = accounts

    async def change_password(
        self, user_id: UUID, *, current: str, new: str, keep: UUID | None = None, ip: str = ""
    ) -> None:
        """Replace a password by another one, and end the account's other logins.

        Args:
            user_id: Whose.
            current: The password until now.
            new: What `PasswordPolicy` accepts.
            keep: The login that stays.
            ip: Where the request comes from.

        Raises:
            InvalidCredentialsError: The password until now is another one.
            ValidationError: The new one is not acceptable.
            RateLimitedError: As for `Accounts.login`.
        """
        user = await self._accounts.reauthenticate(user_id, current, ip=ip)
        if new == current:
            raise refused("The new password is the old one.", "#/new_password")
        password_hash = await self._desk.accept(new, email=user.email, pointer="#/new_password")
        async with self._desk.db.session() as session:
            model = self._desk.user_model
            same = (model.id == user_id, model.password_hash == user.password_hash, model.is_active)
            claim = update(model).where(*same).values(password_hash=password_hash).returning(model.id)
            claim = claim.execution_options(synchronize_session=False, **SAYS_WHAT_CHANGED)
            if await session.scalar(claim) is None:
                raise InvalidCredentialsError  # it was changed meanwhile
            await self._password_was_changed(session, user, "password.changed", keep=keep)

    async def ask_reset(self, email: str) -> None:
        """Mail a link with which a forgotten password can be replaced."""
        await self._mail_link(LinkKind.RESET, normalized_email(email), lambda user: user.is_active)

    async def reset_password(self, token: str, password: str) -> None:
        """Replace a password by means of a link, prove the address by it, and end every login.

        Raises:
            BadRequestError: The link is not valid any more.
            ValidationError: The password is not acceptable; the link can still be used.
            RateLimitedError: Too many passwords are being hashed.
        """
        desk = self._desk
        async with desk.db.session(read_only=True) as session:
            link = await desk.links.find(session, LinkKind.RESET, token)
        password_hash = await desk.accept(password, email=link.email)
        async with desk.db.session() as session:
            user = await self._owner(session, LinkKind.RESET, token)
            user.password_hash, user.is_verified = password_hash, True
            await desk.lockout.unlock(session, user.email)
            await self._password_was_changed(session, user, "password.reset")

    async def ask_verification(self, email: str) -> None:
        """Mail the link again that proves an address."""
        await self._mail_link(
            LinkKind.VERIFY, normalized_email(email), lambda user: user.is_active and not user.is_verified
        )

    async def verify(self, token: str) -> None:
        """Take an address for proven by means of the link that was sent to it.

        Raises:
            BadRequestError: The link is not valid any more.
        """
        async with self._desk.db.session() as session:
            user = await self._owner(session, LinkKind.VERIFY, token)
            user.is_verified = True
            await self._record(session, "email.verified", user.id)

    async def ask_email_change(self, user_id: UUID, *, password: str, new_email: str, ip: str = "") -> None:
        """Mail a link to another address, which makes it the account's own.

        Raises:
            InvalidCredentialsError: The password is wrong.
            ValidationError: The address is none.
            RateLimitedError: As for `Accounts.login`.
        """
        desk, address = self._desk, normalized_email(new_email, pointer="#/new_email")
        user = await self._accounts.reauthenticate(user_id, password, ip=ip)
        async with desk.db.session() as session:
            taken = await desk.by_email(session, address)
            too_soon = await desk.links.is_recent(session, LinkKind.EMAIL, user.id)
            owner_id = user.id if taken is None else None
            link = await desk.links.make(session, LinkKind.EMAIL, user_id=owner_id, email=address)
            await desk.mail.send(session, LinkKind.EMAIL, "" if taken or too_soon else address, {"link": link})
            await self._record(session, "email.change_asked", user.id, after={"email": address})

    async def change_email(self, token: str) -> None:
        """Make an address an account's own by means of the link that was sent to it; the old one is told.

        Raises:
            BadRequestError: The link is not valid any more.
            ConflictError: The address has an account of its own by now.
        """
        desk = self._desk
        async with desk.db.session() as session:
            owner_id, address = await desk.links.use(session, LinkKind.EMAIL, token)
            user = await session.get_one(desk.user_model, owner_id)
            if not user.is_active:
                raise BadRequestError("This link is not valid any more: ask for a new one.")
            before = user.email
            try:
                async with session.begin_nested():
                    user.email, user.is_verified = address, True
            except IntegrityError:
                raise ConflictError("An account with this e-mail address already exists.") from None
            await self._record(session, "email.changed", owner_id, before={"email": before}, after={"email": address})
            await desk.mail.send(session, EMAIL_CHANGED, before, {"email": address})

    async def unlock(self, token: str) -> None:
        """Forget the failed attempts at an account by means of the link that was sent to its owner.

        Raises:
            BadRequestError: The link is not valid any more.
        """
        async with self._desk.db.session() as session:
            user = await self._owner(session, LinkKind.UNLOCK, token)
            await self._desk.lockout.unlock(session, user.email)
            await self._record(session, "account.unlocked", user.id)

    async def _mail_link(self, kind: LinkKind, address: str, wanted: Callable[[HasAccount], bool]) -> None:
        desk = self._desk
        async with desk.db.session() as session:
            user = await desk.by_email(session, address)
            owner_id = user.id if user is not None and wanted(user) else None
            too_soon = await desk.links.is_recent(session, kind, owner_id)
            link = await desk.links.make(session, kind, user_id=None if too_soon else owner_id, email=address)
            await desk.mail.send(session, kind, "" if owner_id is None or too_soon else address, {"link": link})
            target = f"user:{owner_id}" if owner_id is not None else "user:unknown"
            await desk.trail.record(session, f"link.{kind}_asked", target=target)

    async def _owner(self, session: AsyncSession, kind: LinkKind, token: str) -> HasAccount:
        """Whose link this is, if the account can be used and has the address that it was sent to."""
        owner_id, address = await self._desk.links.use(session, kind, token)
        user = await session.get_one(self._desk.user_model, owner_id)
        if not user.is_active or user.email != address:
            raise BadRequestError("This link is not valid any more: ask for a new one.")
        return user

    async def _password_was_changed(
        self, session: AsyncSession, user: HasAccount, action: str, *, keep: UUID | None = None
    ) -> None:
        await self._desk.sessions.revoke_all(session, user.id, reason=action.replace(".", "_"), keep=keep)
        await self._record(session, action, user.id)
        await self._desk.mail.send(session, PASSWORD_CHANGED, user.email, {})

    async def _record(self, session: AsyncSession, action: str, user_id: UUID, **changes: Any) -> None:
        await self._desk.trail.record(session, action, target=f"user:{user_id}", **changes)
