"""The second factors of accounts: which there are, and what is done to them whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConflictError, NotFoundError
from svc_infra.security.accounts import MailQueue
from svc_infra.security.audit import AuditTrail
from svc_infra.security.mfa.challenges import Challenges
from svc_infra.security.mfa.gate import Requirement
from svc_infra.security.mfa.models import EmailFactor, Factor
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.models import HasAccount
from svc_infra.types import Clock, new_id

MAX_FACTORS = 20
"""Factors of one account."""
ENROLLED_MAIL = "mfa_enrolled"
REMOVED_MAIL = "mfa_removed"
RESET_MAIL = "mfa_reset"


class Factors:
    """The second factors of one app's accounts.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        recovery: Their recovery codes.
        challenges: What is under way with them.
        trail: Where it is recorded what is done to them.
        mail: What tells their owners.
        requirement: Who must have one.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        recovery: RecoveryCodes,
        challenges: Challenges,
        trail: AuditTrail,
        mail: MailQueue,
        requirement: Requirement,
        *,
        clock: Clock,
    ) -> None:
        self._db = db
        self._user = user_model
        self._recovery = recovery
        self._challenges = challenges
        self._trail = trail
        self._mail = mail
        self._requirement = requirement
        self._clock = clock

    async def list(self, session: AsyncSession, user_id: UUID) -> list[Factor]:
        """The factors of an account that count, the oldest first."""
        own = select(Factor).where(Factor.user_id == user_id, Factor.confirmed_at.is_not(None))
        return list(await session.scalars(own.order_by(Factor.created_at, Factor.id)))

    async def has_strong(self, session: AsyncSession, user_id: UUID) -> bool:
        """Whether an account has a factor that is more than a code by mail."""
        return any(not isinstance(factor, EmailFactor) for factor in await self.list(session, user_id))

    async def rename(self, session: AsyncSession, user_id: UUID, factor_id: UUID, name: str) -> Factor:
        """Call a factor something else, in this unit of work.

        Raises:
            NotFoundError: The account has no such factor.
        """
        factor = await self._own(session, user_id, factor_id)
        before, factor.name = factor.name, name
        await self._record(session, "mfa.renamed", factor, before={"name": before}, after={"name": name})
        return factor

    async def remove(self, session: AsyncSession, user_id: UUID, factor_id: UUID) -> None:
        """Take a factor from an account, in this unit of work; the recovery codes go with the last one.

        Raises:
            NotFoundError: The account has no such factor.
            ConflictError: The account must have a second factor, and this is the last strong one.
        """
        user = await self._locked(session, user_id)
        factor = await self._own(session, user_id, factor_id)
        others = [one for one in await self.list(session, user_id) if one.id != factor_id]
        if not any(not isinstance(one, EmailFactor) for one in others):
            if not isinstance(factor, EmailFactor) and await self._requirement(session, user_id, user.roles):
                raise ConflictError("This account must have a second factor: enrol another one first.")
            await self._recovery.forget(session, user_id)
        await session.delete(factor)
        await self._record(session, "mfa.removed", factor, before={"name": factor.name})
        await self._mail.send(session, REMOVED_MAIL, user.email, {"factor": factor.name})

    async def reset(self, user_id: UUID) -> int:
        """Take everything from an account that its owner could prove beside the password, in a unit of work of its own.

        For an administrator whom the owner has convinced by other means. No login ends by it.

        Returns:
            How many factors there were.

        Raises:
            NotFoundError: There is no such account.
        """
        async with self._db.session() as session:
            user = await self._locked(session, user_id)
            count = len(await self.list(session, user_id))
            gone = delete(Factor).where(Factor.user_id == user_id)
            await session.execute(gone.execution_options(synchronize_session=False))
            await self._recovery.forget(session, user_id)
            await self._challenges.forget(session, user_id)
            await self._trail.record(session, "mfa.reset", target=f"user:{user_id}", before={"factors": count})
            await self._mail.send(session, RESET_MAIL, user.email, {})
            return count

    async def enrolled(self, session: AsyncSession, user: HasAccount, factor: Factor) -> None:
        """Record a factor that has just begun to count, and tell its owner, in this unit of work."""
        await self._record(session, "mfa.enrolled", factor, after={"name": factor.name})
        await self._mail.send(session, ENROLLED_MAIL, user.email, {"factor": factor.name})

    async def room_for_one(self, session: AsyncSession, user_id: UUID, *, beside: UUID | None = None) -> HasAccount:
        """The account, locked for this unit of work, if it may have one more factor.

        Args:
            session: The unit of work.
            user_id: Whose.
            beside: A factor that is there already, and is to be confirmed.

        Raises:
            ConflictError: It has too many.
        """
        user = await self._locked(session, user_id)
        others = (Factor.user_id == user_id, Factor.id != (beside or new_id()))
        count = select(func.count()).select_from(Factor).where(*others)
        if (await session.scalar(count) or 0) >= MAX_FACTORS:
            raise ConflictError(f"An account has at most {MAX_FACTORS} factors: remove one first.")
        return user

    async def _own(self, session: AsyncSession, user_id: UUID, factor_id: UUID) -> Factor:
        wanted = (Factor.id == factor_id, Factor.user_id == user_id, Factor.confirmed_at.is_not(None))
        factor = (await session.scalars(select(Factor).where(*wanted))).one_or_none()
        if factor is None:
            raise NotFoundError("Factor", factor_id)
        return factor

    async def _locked(self, session: AsyncSession, user_id: UUID) -> HasAccount:
        user = await session.get(self._user, user_id, with_for_update=True)
        if user is None:
            raise NotFoundError("User", user_id)
        return user

    async def _record(
        self,
        session: AsyncSession,
        action: str,
        factor: Factor,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        what = {"factor": str(factor.id), "kind": factor.kind}
        await self._trail.record(
            session,
            action,
            target=f"user:{factor.user_id}",
            before={**what, **before} if before is not None else None,
            after={**what, **after} if after is not None else None,
        )
