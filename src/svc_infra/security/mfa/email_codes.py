"""Codes by mail: a weak factor, as whoever reads the mail can also reset the password."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.accounts import MailQueue
from svc_infra.security.keyring import KeyRing
from svc_infra.security.mfa.challenges import ChallengeKind, Challenges
from svc_infra.security.mfa.models import Challenge
from svc_infra.security.models import HasAccount
from svc_infra.types import Clock, new_id

CODE_DIGITS = 8
CODE_SECONDS = 600.0
CODE_MAIL = "mfa_code"


class EmailCodes:
    """The codes that one app mails.

    Args:
        keys: Where the key for their hashes comes from: a code has few digits.
        challenges: Where they wait.
        mail: What mails them, as jobs of the unit of work.
        interval_seconds: Between two codes to one account.
        clock: Where the time comes from.
    """

    def __init__(
        self, keys: KeyRing, challenges: Challenges, mail: MailQueue, *, interval_seconds: float, clock: Clock
    ) -> None:
        self._keys = keys.derived("mfa-email-code")
        self._challenges = challenges
        self._mail = mail
        self._interval = timedelta(seconds=interval_seconds)
        self._clock = clock

    async def send(self, session: AsyncSession, user: HasAccount, flow_id: UUID) -> None:
        """Mail a code that is good for one login or second step, unless one was mailed a moment ago."""
        since = self._clock.now() - self._interval
        recent = (Challenge.kind == ChallengeKind.EMAIL, Challenge.user_id == user.id, Challenge.created_at > since)
        if await session.scalar(select(Challenge.id).where(*recent).limit(1)) is not None:
            return
        challenge_id, code = new_id(), f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
        await self._challenges.make(
            session,
            ChallengeKind.EMAIL,
            _mac(self._keys[0], challenge_id, code),
            ttl_seconds=CODE_SECONDS,
            challenge_id=challenge_id,
            user_id=user.id,
            flow_id=flow_id,
        )
        await self._mail.send(session, CODE_MAIL, user.email, {"code": code})

    async def attempt(self, session: AsyncSession, user_id: UUID, flow_id: UUID) -> Challenge | None:
        """The code that waits, with one more attempt counted in this unit of work; None without one."""
        wanted = (Challenge.user_id == user_id, Challenge.flow_id == flow_id)
        waiting = await self._challenges.find(session, ChallengeKind.EMAIL, *wanted)
        return waiting if waiting is not None and await self._challenges.attempt(session, waiting) else None

    async def use(self, session: AsyncSession, waiting: Challenge, code: str) -> bool:
        """Use the code up in this unit of work, if it is the right one; of many at once, one succeeds."""
        if not is_mac(self._keys, waiting, code):
            return False
        return await self._challenges.spend(session, waiting)


def is_mac(keys: Sequence[bytes], waiting: Challenge, code: str) -> bool:
    """Whether this is the code that waits, whichever key of the ring its hash is of."""
    return any(hmac.compare_digest(_mac(key, waiting.id, code), waiting.secret_hash) for key in keys)


def _mac(key: bytes, challenge_id: UUID, code: str) -> str:
    return hmac.digest(key, challenge_id.bytes + code.encode("utf-8", "replace"), "sha256").hex()
