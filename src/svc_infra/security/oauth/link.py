"""Which accounts belong to whom elsewhere.

An account is never found by its address alone: three things can bring an identity and an account together. Either the
account is made for the identity, with an address that the provider has verified and that nobody here has; or whoever is
logged in to the account, freshly, asks for it; or, where a newcomer's address has an account already, whoever opens the
link that is then mailed to it, in the browser that has proven the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from svc_infra.db import AsyncDatabase
from svc_infra.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SecondFactorRequiredError,
    UnauthorizedError,
)
from svc_infra.obs import context
from svc_infra.security.accounts import Accounts, MailQueue, normalized_email
from svc_infra.security.audit import AuditTrail
from svc_infra.security.methods import FEDERATED, FRESH_SECONDS, not_fresh
from svc_infra.security.models import HasAccount, Session
from svc_infra.security.oauth.client import ProvenIdentity, ProviderTokens
from svc_infra.security.oauth.flow import hashed_state
from svc_infra.security.oauth.models import OAuthIdentity
from svc_infra.security.oauth.offers import LinkOffers, Offer
from svc_infra.security.remembered import SAYS_WHAT_CHANGED
from svc_infra.security.sessions import Device, LiveSessions, SecondStep, Sessions, TokenPair
from svc_infra.types import Clock, new_id

MAX_IDENTITIES = 20
"""Identities of one account."""

_OFFER = "oauth_offer"


class OAuthIdentities:
    """The identities of one app's accounts.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        accounts: Makes accounts.
        sessions: Opens logins.
        live: Knows which logins are alive.
        trail: Where it is recorded what is linked and unlinked.
        offers: What is mailed to the account that has a newcomer's address.
        mail: How.
        keep_tokens: The names of the providers whose tokens are stored.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        accounts: Accounts,
        sessions: Sessions,
        live: LiveSessions,
        trail: AuditTrail,
        offers: LinkOffers,
        mail: MailQueue,
        *,
        keep_tokens: frozenset[str],
        clock: Clock,
    ) -> None:
        self._db = db
        self._user = user_model
        self._accounts = accounts
        self._sessions = sessions
        self._live = live
        self._trail = trail
        self._offers = offers
        self._mail = mail
        self._keep_tokens = keep_tokens
        self._clock = clock

    async def log_in(self, proven: ProvenIdentity, device: Device, *, state: str) -> TokenPair | SecondStep:
        """Open a login, or its second step, for whom a provider vouches for, in a unit of work of its own.

        Newcomers get an account.

        Args:
            proven: Whom.
            device: Where the login comes from.
            state: That of the login under way.

        Raises:
            ForbiddenError: The account is disabled, or a newcomer's address is not verified.
            ConflictError: A newcomer's address has an account: they must log in to it and link, or open the link that
                was mailed to it.
            ValidationError: A newcomer's address is no e-mail address.
        """
        async with self._db.session() as session:
            identity = await self._find(session, proven) or await self._welcome(session, proven)
            if identity is not None:
                return await self._open(session, identity, proven, device)
            await self._offer(session, proven, state)
        raise ConflictError(  # only now, so that the mail is sent
            f"An account with this e-mail address already exists: log in to it, then link {proven.provider}. Or, if "
            "its address was confirmed, open the link that was mailed to it, in this browser."
        )

    async def link(self, proven: ProvenIdentity, user_id: UUID, session_id: UUID) -> OAuthIdentity:
        """Link an identity to the account that asked for it, in a unit of work of its own.

        Raises:
            UnauthorizedError: The login that asked has ended, or is not fresh any more.
            SecondFactorRequiredError: The account must have a second factor that this login lacks.
            ForbiddenError: An address is not verified: the account's, or the one at the provider.
            ConflictError: The identity belongs to another account, or the account has too many.
        """
        login = await self._live.find(session_id, user_id)
        if login is None:
            raise UnauthorizedError("The login that asked for this has ended: log in again.")
        if login.lacks_second_factor:
            raise SecondFactorRequiredError
        async with self._db.session() as session:
            user = await self.fresh_owner(session, user_id, session_id)
            context.current().principal_id = str(user_id)
            if not user.is_verified:  # or whoever registers a stranger's address could keep a way in
                raise ForbiddenError("Verify the address of this account first.")
            if not proven.email_is_verified or proven.email is None:
                raise ForbiddenError(f"{proven.provider} does not say that it has verified your address.")
            identity = await self._find(session, proven) or await self._add(session, proven, user_id)
            if identity is None or identity.user_id != user_id:
                raise ConflictError(f"Another account belongs to this identity of {proven.provider}.")
            self._refresh(identity, proven)
            return identity

    async def take_offer(self, token: str, cookies: Mapping[str, str]) -> None:
        """Link an identity to the account that was mailed this link, in units of work of its own.

        Args:
            token: What the link carries.
            cookies: Those of the browser that it was opened in.

        Raises:
            BadRequestError: The link is not good, not any more, or not in this browser.
            ConflictError: The identity belongs to another account, or the account has too many.
        """
        offer = await self._offers.take(token, cookies)
        async with self._db.session() as session:
            user = await session.get(self._user, offer.user_id, with_for_update=True)
            if user is None or not user.is_active or not user.is_verified or user.email != offer.email:
                raise BadRequestError("This link is not valid any more: start the login again.")
            context.current().principal_id = str(user.id)
            identity = await self._find(session, offer) or await self._add(session, offer, user.id)
            if identity is None or identity.user_id != user.id:
                raise ConflictError(f"Another account belongs to this identity of {offer.provider}.")
            identity.email = offer.email

    async def fresh_owner(
        self, session: AsyncSession, user_id: UUID, session_id: UUID | None, *, lock: bool = True
    ) -> HasAccount:
        """The account, if its owner has logged in a moment ago.

        Args:
            session: The unit of work; one that may write, if the account is locked for it.
            user_id: The account.
            session_id: The login.
            lock: Let nobody else change the account in this unit of work.

        Raises:
            StaleAuthenticationError: The login was proven longer ago than `FRESH_SECONDS`.
        """
        login = await session.get(Session, session_id) if session_id is not None else None
        user = await session.get(self._user, user_id, with_for_update=lock)
        since = self._clock.now() - timedelta(seconds=FRESH_SECONDS)
        if user is None or login is None or login.user_id != user_id or login.authenticated_at < since:
            raise not_fresh()
        return user

    async def list(self, session: AsyncSession, user_id: UUID) -> list[OAuthIdentity]:
        """The identities of an account, the oldest first."""
        own = select(OAuthIdentity).where(OAuthIdentity.user_id == user_id).limit(MAX_IDENTITIES)
        return [*await session.scalars(own.order_by(OAuthIdentity.created_at, OAuthIdentity.id))]

    async def unlink(self, session: AsyncSession, user_id: UUID, session_id: UUID | None, identity_id: UUID) -> None:
        """Take an identity from an account, in this unit of work.

        Raises:
            StaleAuthenticationError: The login is not fresh.
            NotFoundError: The account has no such identity.
            ConflictError: It is the only way to log in to the account.
        """
        user = await self.fresh_owner(session, user_id, session_id)
        own = {identity.id: identity for identity in await self.list(session, user_id)}
        if identity_id not in own:
            raise NotFoundError("Identity", identity_id)
        if len(own) == 1 and user.password_hash is None:
            raise ConflictError("This is the only way to log in to the account: set a password first.")
        await session.delete(own[identity_id])
        await self._record(session, "oauth.unlinked", own[identity_id])

    async def tokens(self, session: AsyncSession, user_id: UUID, identity_id: UUID) -> ProviderTokens | None:
        """What the app may call the provider with for this identity; None where no tokens are kept."""
        wanted = select(OAuthIdentity).where(OAuthIdentity.id == identity_id, OAuthIdentity.user_id == user_id)
        secret = (undefer(OAuthIdentity.access_token), undefer(OAuthIdentity.refresh_token))
        found = (await session.scalars(wanted.options(*secret).execution_options(populate_existing=True))).one_or_none()
        if found is None or found.access_token is None:
            return None
        return ProviderTokens(
            access_token=found.access_token, refresh_token=found.refresh_token, expires_at=found.token_expires_at
        )

    async def refused(self, provider: str, reason: str, user_id: UUID | None) -> None:
        """Record a login or a link that was refused, in a unit of work of its own."""
        target = f"user:{user_id}" if user_id is not None else "user:unknown"
        async with self._db.session() as session:
            after = {"provider": provider, "reason": reason}
            await self._trail.record(session, "oauth.refused", target=target, after=after, outcome="failure")

    async def _open(
        self, session: AsyncSession, identity: OAuthIdentity, proven: ProvenIdentity, device: Device
    ) -> TokenPair | SecondStep:
        user, now = self._user, self._clock.now()
        claim = update(user).where(user.id == identity.user_id, user.is_active).values(last_login_at=now)
        claim = claim.execution_options(synchronize_session=False, **SAYS_WHAT_CHANGED)
        if await session.scalar(claim.returning(user.id)) is None:
            raise ForbiddenError("This account is disabled.")
        self._refresh(identity, proven)
        identity.last_login_at = now
        context.current().principal_id = str(identity.user_id)
        await self._record(session, "oauth.logged_in", identity)
        return await self._sessions.admit(session, identity.user_id, device, methods=(FEDERATED,))

    async def _find(self, session: AsyncSession, proven: ProvenIdentity | Offer) -> OAuthIdentity | None:
        same = (
            OAuthIdentity.provider == proven.provider,
            OAuthIdentity.issuer == proven.issuer,
            OAuthIdentity.subject == proven.subject,
        )
        return (await session.scalars(select(OAuthIdentity).where(*same))).one_or_none()

    async def _welcome(self, session: AsyncSession, proven: ProvenIdentity) -> OAuthIdentity | None:
        """The identity of a newcomer, with an account that was made for it; None when the address has another one."""
        if proven.email is None or not proven.email_is_verified:
            raise ForbiddenError(f"{proven.provider} does not say that it has verified your address.")
        user = await self._accounts.adopt(session, email=proven.email)
        if user is not None:
            return await self._add(session, proven, user.id)
        return await self._find(session, proven)  # a second tab of the same newcomer may have been first

    async def _offer(self, session: AsyncSession, proven: ProvenIdentity, state: str) -> None:
        """Mail a link to the account that has a newcomer's address, if it was proven to be its owner's."""
        address = normalized_email(proven.email or "")
        user = (await session.scalars(select(self._user).where(self._user.email == address))).one_or_none()
        if user is None or not user.is_active or not user.is_verified:
            return
        offer = Offer(
            provider=proven.provider,
            issuer=proven.issuer,
            subject=proven.subject,
            email=address,
            account_id=str(user.id),
            state_hash=hashed_state(state),
        )
        await self._mail.send(session, _OFFER, address, {"provider": proven.provider, "link": self._offers.link(offer)})
        after = {"provider": proven.provider, "issuer": proven.issuer, "subject": proven.subject}
        await self._trail.record(session, "oauth.link_offered", target=f"user:{user.id}", after=after)

    async def _add(self, session: AsyncSession, proven: ProvenIdentity | Offer, user_id: UUID) -> OAuthIdentity | None:
        """The new identity; None when another account was given it at this moment."""
        count = select(func.count()).select_from(OAuthIdentity).where(OAuthIdentity.user_id == user_id)
        if (await session.scalar(count) or 0) >= MAX_IDENTITIES:
            raise ConflictError(f"An account has at most {MAX_IDENTITIES} identities.")
        identity = OAuthIdentity(
            id=new_id(),
            user_id=user_id,
            provider=proven.provider,
            issuer=proven.issuer,
            subject=proven.subject,
            created_at=self._clock.now(),
        )
        try:
            async with session.begin_nested():
                session.add(identity)
        except IntegrityError:
            return None
        await self._record(session, "oauth.linked", identity)
        return identity

    def _refresh(self, identity: OAuthIdentity, proven: ProvenIdentity) -> None:
        """Take over what the provider says now."""
        identity.email = proven.email[:320] if proven.email is not None else None
        if proven.provider in self._keep_tokens:
            identity.access_token = proven.tokens.access_token
            identity.token_expires_at = proven.tokens.expires_at
            if proven.tokens.refresh_token is not None:  # some give one only the first time
                identity.refresh_token = proven.tokens.refresh_token

    async def _record(
        self,
        session: AsyncSession,
        action: Literal["oauth.linked", "oauth.unlinked", "oauth.logged_in"],
        identity: OAuthIdentity,
    ) -> None:
        after = {"provider": identity.provider, "issuer": identity.issuer, "subject": identity.subject}
        await self._trail.record(session, action, target=f"user:{identity.user_id}", after=after)
