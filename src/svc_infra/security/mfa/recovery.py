"""Recovery codes: for whoever has lost everything else."""

from __future__ import annotations

import secrets
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.mfa.challenges import hashed
from svc_infra.security.mfa.models import RecoveryCode
from svc_infra.types import Clock, new_id

CODES = 10
CODE_CHARACTERS = 24
"""Of 5 bits each: 120 random bits, so that a plain hash is enough (ASVS 6.5.2)."""
GROUP_CHARACTERS = 4
LOW_COUNT = 3
"""From how few on the owner is told by mail."""
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
"""That of base32 (RFC 4648): no digit looks like a letter of it."""


class RecoveryCodes:
    """The recovery codes of one app's accounts.

    Args:
        clock: Where the time comes from.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    async def make(self, session: AsyncSession, user_id: UUID) -> list[str]:
        """New codes in this unit of work, shown this once; those before them end."""
        await self.forget(session, user_id)
        codes = ["".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARACTERS)) for _ in range(CODES)]
        now = self._clock.now()
        session.add_all(
            RecoveryCode(id=new_id(), user_id=user_id, code_hash=hashed(code), created_at=now) for code in codes
        )
        await session.flush()
        starts = range(0, CODE_CHARACTERS, GROUP_CHARACTERS)
        return ["-".join(code[start : start + GROUP_CHARACTERS] for start in starts) for code in codes]

    async def use(self, session: AsyncSession, user_id: UUID, code: str) -> bool:
        """Use one up in this unit of work; of many at once, one succeeds."""
        mine = (RecoveryCode.user_id == user_id, RecoveryCode.code_hash == hashed(code), RecoveryCode.used_at.is_(None))
        claim = update(RecoveryCode).where(*mine).values(used_at=self._clock.now())
        done = await session.execute(claim.execution_options(synchronize_session=False))
        return cast("CursorResult[Any]", done).rowcount == 1

    async def left(self, session: AsyncSession, user_id: UUID) -> int:
        """How many can still be used."""
        unused = (RecoveryCode.user_id == user_id, RecoveryCode.used_at.is_(None))
        return await session.scalar(select(func.count()).select_from(RecoveryCode).where(*unused)) or 0

    async def forget(self, session: AsyncSession, user_id: UUID) -> None:
        """End all of an account's in this unit of work."""
        await session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
