"""What is under way: each can be ended once, for a while, by whoever began it."""

from __future__ import annotations

import hmac
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.mfa.models import Challenge
from svc_infra.types import Clock, new_id

MAX_ATTEMPTS = 5
"""How often one can be tried, whatever the lockout says."""
_PURGED_AT_ONCE = 10


class ChallengeKind(StrEnum):
    """The second step of a login, what a passkey signs to prove itself or to be enrolled, a code in a mail."""

    STEP = "step"
    PASSKEY = "passkey"
    ENROL = "enrol"
    EMAIL = "email"


class Challenges:
    """What is under way in one app. Each new one sweeps some that are too old, so they never pile up.

    Args:
        clock: Where the time comes from.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    async def make(
        self,
        session: AsyncSession,
        kind: ChallengeKind,
        secret_hash: str,
        *,
        ttl_seconds: float,
        challenge_id: UUID | None = None,
        user_id: UUID | None = None,
        flow_id: UUID | None = None,
        browser_secret: str | None = None,
        note: str = "",
        account_hash: str | None = None,
    ) -> Challenge:
        """A new one in this unit of work; the arguments are what `Challenge` says."""
        now = self._clock.now()
        old = select(Challenge.id).where(Challenge.expires_at < now).limit(_PURGED_AT_ONCE)
        await session.execute(delete(Challenge).where(Challenge.id.in_(old.with_for_update(skip_locked=True))))
        challenge = Challenge(
            id=challenge_id or new_id(),
            kind=kind,
            secret_hash=secret_hash,
            user_id=user_id,
            flow_id=flow_id,
            browser_hash=hashed(browser_secret) if browser_secret is not None else None,
            note=note,
            account_hash=account_hash,
            attempts=0,
            created_at=now,
            expires_at=now + timedelta(seconds=ttl_seconds),
        )
        session.add(challenge)
        await session.flush()
        return challenge

    async def find(
        self,
        session: AsyncSession,
        kind: ChallengeKind,
        *wanted: ColumnElement[bool],
        browser_secret: str | None = None,
    ) -> Challenge | None:
        """The newest one of a kind that can still be ended, by this browser."""
        found = select(Challenge).where(self._is_open(), Challenge.kind == kind, *wanted)
        newest = found.order_by(Challenge.created_at.desc(), Challenge.id.desc()).limit(1)
        challenge = (await session.scalars(newest)).one_or_none()
        if challenge is None or challenge.browser_hash is None:
            return challenge
        shown = hashed(browser_secret or "")
        return challenge if hmac.compare_digest(shown, challenge.browser_hash) else None

    async def attempt(self, session: AsyncSession, challenge: Challenge) -> bool:
        """Count one attempt in this unit of work, if there may be one more; a failed one must be committed."""
        claim = update(Challenge).where(
            self._is_open(), Challenge.id == challenge.id, Challenge.attempts < MAX_ATTEMPTS
        )
        return await self._changed(session, claim.values(attempts=Challenge.attempts + 1))

    async def spend(self, session: AsyncSession, challenge: Challenge) -> bool:
        """End it in this unit of work; of many at once, one succeeds."""
        claim = update(Challenge).where(self._is_open(), Challenge.id == challenge.id)
        return await self._changed(session, claim.values(used_at=self._clock.now()))

    async def forget(self, session: AsyncSession, user_id: UUID) -> None:
        """End everything of an account in this unit of work."""
        await session.execute(delete(Challenge).where(Challenge.user_id == user_id))

    def _is_open(self) -> ColumnElement[bool]:
        return Challenge.used_at.is_(None) & (Challenge.expires_at > self._clock.now())

    async def _changed(self, session: AsyncSession, claim: Any) -> bool:
        done = await session.execute(claim.execution_options(synchronize_session=False))
        return cast("CursorResult[Any]", done).rowcount == 1


def hashed(secret: str) -> str:
    """SHA-256 of a random secret, in hex."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
