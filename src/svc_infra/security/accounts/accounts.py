"""Accounts: who has one, logging in, and what is done to an account as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import AuthSettings
from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import ConflictError, InvalidCredentialsError, NotFoundError, RateLimitedError
from svc_infra.obs import context
from svc_infra.security.accounts.email import normalized_email
from svc_infra.security.accounts.links import AccountLinks, LinkKind
from svc_infra.security.accounts.mailing import MailQueue
from svc_infra.security.audit import AuditTrail
from svc_infra.security.lockout import Lockout
from svc_infra.security.methods import PASSWORD
from svc_infra.security.models import HasAccount, User
from svc_infra.security.ownership import check_account_may_go
from svc_infra.security.passwords import BreachedPasswords, PasswordHasher, PasswordPolicy
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.security.sessions import Device, SecondStep, Sessions, TokenPair
from svc_infra.types import Clock, SystemClock, new_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What everything about accounts works with.

    Attributes:
        user_model: The app's users.
        require_verified: Whether only proven addresses log in.
    """

    db: AsyncDatabase
    hasher: PasswordHasher
    sessions: Sessions
    lockout: Lockout
    trail: AuditTrail
    mail: MailQueue
    links: AccountLinks
    policy: PasswordPolicy = field(default_factory=PasswordPolicy)
    breached: BreachedPasswords | None = None
    user_model: type[HasAccount] = User
    require_verified: bool = False
    settings: AuthSettings = field(default_factory=AuthSettings)
    clock: Clock = field(default_factory=SystemClock)

    async def accept(self, password: str, *, email: str, pointer: str = "#/password") -> str:
        """The hash of a new password; outside of any unit of work, as it takes long.

        Raises:
            ValidationError: The password is not acceptable.
            RateLimitedError: Too many passwords are being hashed.
        """
        self.policy.check(password, email=email, pointer=pointer)
        if self.breached is not None:
            await self.breached.check(password, pointer=pointer)
        return await self.hasher.hash(password)

    async def by_email(self, session: AsyncSession, address: str) -> HasAccount | None:
        """The account of an address in its one form."""
        found = select(self.user_model).where(self.user_model.email == address)
        return (await session.execute(found)).scalar_one_or_none()


class Accounts:
    """The accounts of one app.

    Args:
        desk: What it works with.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def register(
        self, session: AsyncSession, *, email: str, password: str, roles: Collection[str] = ()
    ) -> HasAccount:
        """Make an account in this unit of work, for whoever may know which addresses have one.

        Args:
            session: The caller's unit of work; nothing is asked of the database before the password is hashed.
            email: The address, in any spelling of it.
            password: What `PasswordPolicy` accepts.
            roles: Roles of the new account; never taken from a request.

        Raises:
            ValidationError: The address or the password is not acceptable.
            ConflictError: The address has an account.
            RateLimitedError: Too many passwords are being hashed.
        """
        address = normalized_email(email)
        password_hash = await self._desk.accept(password, email=address)
        new_one_id, owner_id = await self._make(session, address, password_hash, roles)
        if new_one_id != owner_id:
            raise ConflictError("An account with this e-mail address already exists.")
        changes = {"email": address, "roles": list(roles)}
        await self._record(session, "account.registered", owner_id, after=changes)
        return await self._existing(session, owner_id)

    async def adopt(self, session: AsyncSession, *, email: str) -> HasAccount | None:
        """Make an account without a password in this unit of work, for an address that its owner has proven elsewhere.

        Returns:
            The account; None when the address has one already, which proves nothing about whose that is.

        Raises:
            ValidationError: It is not an e-mail address.
        """
        address = normalized_email(email)
        new_one_id, owner_id = await self._make(session, address, None, (), is_verified=True)
        if new_one_id != owner_id:
            return None
        await self._record(session, "account.registered", owner_id, after={"email": address, "roles": []})
        return await self._existing(session, owner_id)

    async def sign_up(self, *, email: str, password: str) -> tuple[UUID, str]:
        """Make an account for a stranger, in a unit of work of its own.

        An address that has an account gets the same answer for the same work; only its mailbox is told the difference.

        Returns:
            The account's id and address; an id of nobody, when the address has an account.

        Raises:
            ValidationError, RateLimitedError: As for `register`.
        """
        desk, address = self._desk, normalized_email(email)
        password_hash = await desk.accept(password, email=address)
        async with desk.db.session() as session:
            new_one_id, owner_id = await self._make(session, address, password_hash, ())
            is_new = new_one_id == owner_id
            await self._record(session, "account.registered", owner_id, outcome="success" if is_new else "failure")
            kind = LinkKind.VERIFY if is_new else LinkKind.AGAIN
            too_soon = await desk.links.is_recent(session, kind, owner_id)
            link = await desk.links.make(session, kind, user_id=owner_id, email=address)
            await desk.mail.send(session, kind, "" if too_soon else address, {"link": link})
        return new_one_id, address

    async def login(self, *, email: str, password: str, device: Device | None = None) -> TokenPair | SecondStep:
        """Verify a password and open a login, or its second step, in units of work of its own.

        An unknown address, a wrong password and a disabled account get the same answer for the same work, and so does
        an unproven address where proof is required.

        Raises:
            InvalidCredentialsError: The two do not open an account.
            ValidationError: The address is not an e-mail address.
            RateLimitedError: There were too many failed attempts, or too many passwords are being verified.
        """
        desk, device, address = self._desk, device or Device(), normalized_email(email)
        user, new_hash = await self._verified(address, password, device.ip)
        async with desk.db.session() as session:
            # The account as it was verified: a password changed or an account disabled meanwhile is refused.
            same = (desk.user_model.id == user.id, desk.user_model.password_hash == user.password_hash)
            changes = {"last_login_at": desk.clock.now(), "password_hash": new_hash or user.password_hash}
            claim = update(desk.user_model).where(*same, desk.user_model.is_active).values(changes)
            claim = claim.execution_options(synchronize_session=False, **SAYS_WHAT_CHANGED)
            if await session.scalar(claim.returning(desk.user_model.id)) is None:
                raise self._wrong()
            context.current().principal_id = str(user.id)
            outcome = await desk.sessions.admit(session, user.id, device, methods=(PASSWORD,))
            if isinstance(outcome, SecondStep):  # or whoever knows the password could guess the second factor for ever
                await desk.lockout.passed(session, address, device.ip)
            else:
                await desk.lockout.succeeded(session, address, device.ip)
            return outcome

    async def reauthenticate(self, user_id: UUID, password: str, *, ip: str = "") -> HasAccount:
        """The account, once its owner has proven again to know its password, in units of work of its own.

        Raises:
            InvalidCredentialsError: It is the wrong one.
            RateLimitedError: As for `login`.
        """
        desk = self._desk
        async with desk.db.session(read_only=True) as session:
            found = await session.get(desk.user_model, user_id)
        user, _ = await self._verified(found.email if found is not None else "", password, ip)
        async with desk.db.session() as session:
            await desk.lockout.passed(session, user.email, ip)
        return user

    async def get(self, session: AsyncSession, user_id: UUID) -> HasAccount | None:
        """The account, or None."""
        return await session.get(self._desk.user_model, user_id)

    async def update_profile(self, session: AsyncSession, user_id: UUID, values: Mapping[str, Any]) -> HasAccount:
        """Change what an account says about its owner, in this unit of work.

        Raises:
            NotFoundError: There is no such account.
        """
        user = await self._existing(session, user_id)
        before = {name: getattr(user, name) for name in values}
        for name, value in values.items():
            setattr(user, name, value)
        await self._record(session, "account.changed", user_id, before=before, after=values)
        return user

    async def set_roles(self, session: AsyncSession, user_id: UUID, roles: Collection[str]) -> None:
        """Give an account these roles and no others, in this unit of work; effective with its commit.

        Raises:
            NotFoundError: There is no such account.
        """
        user = await self._existing(session, user_id)
        before, user.roles = sorted(user.roles), sorted(set(roles))
        await self._record(
            session, "account.roles_changed", user_id, before={"roles": before}, after={"roles": list(user.roles)}
        )

    async def disable(self, session: AsyncSession, user_id: UUID, *, reason: str) -> None:
        """Let nobody use an account, and end its logins, in this unit of work.

        Raises:
            NotFoundError: There is no such account.
        """
        user = await self._existing(session, user_id)
        user.is_active, user.disabled_reason = False, reason[:200]
        await self._desk.sessions.revoke_all(session, user_id, reason="account_disabled")
        await self._record(session, "account.disabled", user_id, after={"reason": reason[:200]})

    async def give_up(self, session: AsyncSession, user_id: UUID, *, reason: str) -> None:
        """Disable an account because its owner wants that, in this unit of work.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: It is the only owner of an organization. An administrator who disables an account is not
                held up by that.
        """
        await check_account_may_go(session, self._desk.user_model, user_id)
        await self.disable(session, user_id, reason=reason)

    async def enable(self, session: AsyncSession, user_id: UUID) -> None:
        """Undo `disable` in this unit of work; the logins stay ended.

        Raises:
            NotFoundError: There is no such account.
        """
        user = await self._existing(session, user_id)
        user.is_active, user.disabled_reason = True, None
        await self._record(session, "account.enabled", user_id)

    async def unlock(self, session: AsyncSession, user_id: UUID) -> None:
        """Forget the failed attempts at an account in this unit of work.

        Raises:
            NotFoundError: There is no such account.
        """
        user = await self._existing(session, user_id)
        await self._desk.lockout.unlock(session, user.email)
        await self._record(session, "account.unlocked", user_id)

    async def delete(self, session: AsyncSession, user_id: UUID) -> None:
        """Delete an account and its logins in this unit of work.

        Raises:
            NotFoundError: There is no such account.
            ConflictError: It is the only owner of an organization. At the commit: something of the app still refers to
                it.
        """
        user = await self._existing(session, user_id)
        roles = await check_account_may_go(session, self._desk.user_model, user_id)
        for organization_id, role in roles.items():  # each organization's own record says who is no member any more
            await self._record(
                session, "membership.removed", user_id, tenant_id=str(organization_id), before={"role": role}
            )
        await self._desk.sessions.revoke_all(session, user_id, reason="account_deleted")
        await session.delete(user)
        await self._record(session, "account.deleted", user_id)

    async def _verified(self, address: str, password: str, ip: str) -> tuple[HasAccount, str | None]:
        """The account that the two open, and the hash to store for it instead."""
        desk = self._desk
        await desk.lockout.check(address, ip)
        try:
            async with desk.db.session(read_only=True) as session:
                user = await desk.by_email(session, address)
            verification = await desk.hasher.verify(password, user.password_hash if user is not None else None)
        except RateLimitedError:
            await desk.lockout.withdrawn(address, ip)
            raise
        if (
            user is not None
            and verification.matches
            and user.is_active
            and (user.is_verified or not desk.require_verified)
        ):
            return user, verification.new_hash
        await self.refused(address, user)
        raise self._wrong()

    async def refused(
        self,
        address: str,
        user: HasAccount | None,
        *,
        action: str = "session.refused",
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a failed attempt, and tell an owner who is locked out by it; nobody's address takes the same work.

        Args:
            address: The address that `Lockout.check` counted the attempt under.
            user: Whose account it is; None where nobody's.
            action: What was refused.
            after: What is recorded beside that.
        """
        desk = self._desk
        async with desk.db.session() as session:
            owner_id = user.id if user is not None else None
            target = f"user:{owner_id}" if owner_id is not None else "user:unknown"
            await desk.trail.record(session, action, target=target, after=after, outcome="failure")
            if await desk.lockout.failed(session, address):
                link = await desk.links.make(session, LinkKind.UNLOCK, user_id=owner_id, email=address)
                await desk.mail.send(session, LinkKind.UNLOCK, address if user is not None else "", {"link": link})

    async def _make(
        self,
        session: AsyncSession,
        address: str,
        password_hash: str | None,
        roles: Collection[str],
        *,
        is_verified: bool = False,
    ) -> tuple[UUID, UUID]:
        """Store a new account, unless the address has one: the new one's id, and the id of whose the address is."""
        now, make, failure = self._desk.clock.now(), cast(Callable[..., HasAccount], self._desk.user_model), None
        user = make(
            id=new_id(),
            email=address,
            password_hash=password_hash,
            is_active=True,
            is_verified=is_verified,
            roles=list(roles),
            created_at=now,
            updated_at=now,
        )
        new_one_id = user.id
        try:
            async with session.begin_nested():  # the caller's unit of work survives the refusal
                session.add(user)
        except IntegrityError as error:
            failure = error
        owner = await self._desk.by_email(session, address)
        if owner is None:  # a constraint of the app's own user model
            raise failure or NotFoundError("User", new_one_id)
        return new_one_id, owner.id

    async def _existing(self, session: AsyncSession, user_id: UUID) -> HasAccount:
        user = await session.get(self._desk.user_model, user_id)
        if user is None:
            raise NotFoundError("User", user_id)
        return user

    async def _record(self, session: AsyncSession, action: str, user_id: UUID, **changes: Any) -> None:
        await self._desk.trail.record(session, action, target=f"user:{user_id}", **changes)

    def _wrong(self) -> InvalidCredentialsError:
        unproven = (
            "The e-mail address or the password is wrong, or the address is not verified yet: look into its mail."
        )
        return InvalidCredentialsError(unproven if self._desk.require_verified else None)
