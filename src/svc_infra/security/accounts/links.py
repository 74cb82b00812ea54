"""Links in mails: whoever has one may do one thing, once, for a while."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from secrets import token_urlsafe
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import AuthSettings
from svc_infra.errors import BadRequestError
from svc_infra.security.models import AccountLink
from svc_infra.types import Clock, SystemClock, new_id

TOKEN_BYTES = 32
MAX_LINK_TOKEN_CHARACTERS = 128


class LinkKind(StrEnum):
    """What a link is for; `AGAIN` opens nothing and only notes that a mail was sent."""

    VERIFY = "verify"
    RESET = "reset"
    EMAIL = "email"
    UNLOCK = "unlock"
    AGAIN = "again"


_PAGES: Mapping[LinkKind, str] = {
    LinkKind.VERIFY: "/verify-email",
    LinkKind.RESET: "/reset-password",
    LinkKind.EMAIL: "/confirm-email",
    LinkKind.UNLOCK: "/unlock-account",
    LinkKind.AGAIN: "/reset-password",
}


class AccountLinks:
    """The links of one app's accounts. Only hashes of them are stored.

    Args:
        settings: How long they last, and how often they are sent.
        clock: Where the time comes from.
    """

    def __init__(self, settings: AuthSettings | None = None, *, clock: Clock | None = None) -> None:
        self._settings = settings or AuthSettings()
        self._clock = clock or SystemClock()

    async def make(self, session: AsyncSession, kind: LinkKind, *, user_id: UUID | None, email: str) -> str:
        """A new link in this unit of work; those of the same kind that the account had before end.

        Args:
            session: The unit of work.
            kind: What it is for.
            user_id: Whose account; None for a decoy.
            email: Where it is sent to.

        Returns:
            The path of the page that it leads to, with the token behind the `#`, where no server log sees it.
        """
        now = self._clock.now()
        ttl = self._settings.reset_ttl_seconds if kind is LinkKind.RESET else self._settings.verify_ttl_seconds
        token = token_urlsafe(TOKEN_BYTES)
        older = [AccountLink.user_id == (user_id or new_id()), AccountLink.kind == kind, AccountLink.used_at.is_(None)]
        await session.execute(update(AccountLink).where(*older).values(used_at=now))
        session.add(
            AccountLink(
                id=new_id(),
                user_id=user_id,
                kind=kind,
                token_hash=_hashed(token),
                email=email,
                created_at=now,
                expires_at=now + timedelta(seconds=ttl),
            )
        )
        await session.flush()
        return f"{_PAGES[kind]}#{token}"

    async def is_recent(self, session: AsyncSession, kind: LinkKind, user_id: UUID | None) -> bool:
        """Whether such a link was sent a moment ago, so that another one would only fill a mailbox."""
        since = self._clock.now() - timedelta(seconds=self._settings.mail_interval_seconds)
        wanted = [
            AccountLink.user_id == (user_id or new_id()),
            AccountLink.kind == kind,
            AccountLink.created_at > since,
        ]
        return (await session.scalar(select(AccountLink.id).where(*wanted).limit(1))) is not None

    async def find(self, session: AsyncSession, kind: LinkKind, token: str) -> AccountLink:
        """A link that can still be used.

        Raises:
            BadRequestError: There is none.
        """
        found = (await session.scalars(select(AccountLink).where(*self._usable(kind, token)))).one_or_none()
        if found is None:
            raise BadRequestError("This link is not valid any more: ask for a new one.")
        return found

    async def use(self, session: AsyncSession, kind: LinkKind, token: str) -> tuple[UUID, str]:
        """Use a link up in this unit of work; of many at once, one succeeds.

        Returns:
            Whose it is, and the address that it was sent to.

        Raises:
            BadRequestError: It is unknown, of another kind, used or too old.
        """
        claim = update(AccountLink).where(*self._usable(kind, token)).values(used_at=self._clock.now())
        claim = claim.execution_options(synchronize_session=False)
        row = (await session.execute(claim.returning(AccountLink.user_id, AccountLink.email))).one_or_none()
        if row is None or row.user_id is None:
            raise BadRequestError("This link is not valid any more: ask for a new one.")
        return row.user_id, row.email

    async def purge(self, session: AsyncSession, *, limit: int = 1000) -> int:
        """Delete links that are too old; returns how many, up to the limit."""
        interval = timedelta(seconds=self._settings.mail_interval_seconds)
        old = select(AccountLink.id).where(AccountLink.expires_at < self._clock.now() - interval).limit(limit)
        gone = delete(AccountLink).where(AccountLink.id.in_(old)).returning(AccountLink.id)
        return len((await session.scalars(gone)).all())

    def _usable(self, kind: LinkKind, token: str) -> list[ColumnElement[bool]]:
        return [
            AccountLink.token_hash == _hashed(token),
            AccountLink.kind == kind,
            AccountLink.user_id.is_not(None),
            AccountLink.used_at.is_(None),
            AccountLink.expires_at > self._clock.now(),
        ]


def _hashed(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
