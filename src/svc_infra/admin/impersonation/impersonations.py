"""Impersonations: begun, verified with every request, ended.

What a request shows is a token: who acts as whom, since when and until when, and a nonce, under an HMAC-SHA256 that
also covers the admin's login. It opens nothing without that login's own credential, and nothing that the table does not
say is still going on. So it ends with a word, with its time, with the login, and with the rights of the admin.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.admin.impersonation.models import Impersonation
from svc_infra.admin.impersonation.targets import Target
from svc_infra.admin.rank import is_below, may_impersonate
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.obs import context
from svc_infra.security.access import Policy
from svc_infra.security.audit import AuditTrail
from svc_infra.security.cookies import Cookies
from svc_infra.security.principal import Principal
from svc_infra.security.sessions import Ended
from svc_infra.types import Clock, SystemClock

STARTED = "admin.impersonation.started"
STOPPED = "admin.impersonation.stopped"
REFUSED = "admin.impersonation.refused"
NOT_ACCEPTED = "admin.impersonation.not_accepted"
MAX_ENDED_AT_ONCE = 1000

_log = logging.getLogger("svc_infra.api.fastapi.admin")  # the documented name


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every impersonation of an app.

    Attributes:
        cookie_name: Where the token is.
        ttl_seconds: How long one lasts, whatever is done meanwhile.
        read_only: Whether nothing can ever be changed.
    """

    cookie_name: str = "impersonation"
    ttl_seconds: int = 900
    read_only: bool = False


class Impersonations:
    """The impersonations of one app.

    Args:
        db: Where they are kept.
        trail: Where it is recorded that one begins or ends.
        policy: What the roles permit.
        cookies: Signs the tokens.
        terms: What holds for all of them.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        trail: AuditTrail,
        policy: Policy,
        cookies: Cookies,
        terms: Terms,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._trail = trail
        self._policy = policy
        self._cookies = cookies
        self._terms = terms
        self._clock = clock or SystemClock()

    def refusal(self, actor: Principal, target: Target) -> str | None:
        """Why this admin may not act as this user; None where they may."""
        if not may_impersonate(actor):
            return "You may not act as other users any more."
        if target.id == str(actor.id):
            return "You are this user."
        if not is_below(self._policy, target.roles, actor):
            return "This user's roles permit as much as yours, or something that yours do not."
        return None

    async def start(
        self, session: AsyncSession, actor: Principal, target: Target, *, reason: str, read_only: bool
    ) -> str:
        """Let a login act as a user from the commit of this unit of work on; what it acted as before ends.

        Args:
            session: The unit of work.
            actor: Who is logged in; `refusal` has said nothing.
            target: The user.
            reason: Why, for the record.
            read_only: Whether nothing can be changed meanwhile; where the app's terms say so, nothing ever can.

        Returns:
            The token.

        Raises:
            ConflictError: At the commit: the same login has begun to act as somebody at this moment.
        """
        login, ttl = actor.session_id, self._terms.ttl_seconds
        await self._end(session, "replaced", Impersonation.session_id == login)
        now = self._clock.now().replace(microsecond=0)
        row = Impersonation(
            id=uuid4(),
            session_id=login,
            actor_id=actor.id,
            target_id=target.id,
            reason=reason,
            read_only=read_only or self._terms.read_only,
            started_at=now,
            expires_at=now + timedelta(seconds=ttl),
        )
        session.add(row)
        await session.flush()
        facts = {"actor_id": str(actor.id), "target_id": target.id, "reason": reason, "expires_in": ttl}
        after = {**facts, "read_only": row.read_only}
        await self._trail.record(session, STARTED, target=f"user:{target.id}", after=after)
        after_commit(session, partial(_log.info, STARTED, extra=facts))
        token = json.dumps(_claims(row))
        return self._cookies.sign(self._terms.cookie_name, token, max_age_seconds=ttl, subject=str(login))

    async def refused(self, actor: Principal, target_id: str, why: str, reason: str) -> None:
        """Record that somebody wanted to act as a user and may not, in a unit of work of its own."""
        after = {"target_id": target_id, "refusal": why, "reason": reason}
        async with self._db.session() as session:
            target = f"user:{target_id}"
            await self._trail.record(session, REFUSED, target=target, after=after, outcome="failure")
        _log.warning(REFUSED, extra={"actor_id": str(actor.id), "target_id": target_id, "refusal": why})

    async def find(self, actor: Principal, token: str) -> Impersonation | None:
        """What this login's token stands for; None when it is not this login's, not ours, or has ended."""
        name, login = self._terms.cookie_name, str(actor.session_id)
        said = self._cookies.verify(name, token, subject=login) if actor.session_id is not None else None
        row: Impersonation | None = None
        why = "its time is over, it is another login's, or this secret has not signed it"
        if said is not None:
            claims = json.loads(said)
            async with self._db.session(read_only=True) as session:
                row = await session.get(Impersonation, UUID(claims["nonce"]))
            if row is None or _claims(row) != claims or row.actor_id != actor.id:
                why = "the table does not know it so"
                row = None
            elif row.ended_at is not None or row.expires_at <= self._clock.now():
                why = row.end_reason or "expired"
                row = None
        if row is None:  # the client is not told why, but who looks for the reason is
            _log.debug(NOT_ACCEPTED, extra={"actor_id": str(actor.id), "refusal": why})
        return row

    async def end(self, row: Impersonation, reason: str) -> None:
        """End one that may not go on, in a unit of work of its own."""
        async with self._db.session() as session:
            await self._end(session, reason, Impersonation.id == row.id, unnoticed=True)

    async def stop(self, session: AsyncSession, login: UUID | None) -> None:
        """End what a login acts as, in this unit of work."""
        await self._end(session, "manual", Impersonation.session_id == login)

    async def logins_ended(self, session: AsyncSession, ended: Ended) -> None:
        """End what ends with logins: what they acted as, and what others did as a user whose logins all end."""
        wanted: list[ColumnElement[bool]] = []
        if ended.session_ids:
            wanted.append(Impersonation.session_id.in_(ended.session_ids))
        if ended.user_id is not None:
            wanted.append(Impersonation.target_id == str(ended.user_id))
        if wanted:
            await self._end(session, ended.reason, or_(*wanted))

    async def end_expired(self, session: AsyncSession) -> int:
        """Record the end of those whose time is over, in this unit of work; returns how many, up to a limit."""
        old = select(Impersonation.id).where(
            Impersonation.ended_at.is_(None), Impersonation.expires_at <= self._clock.now()
        )
        some = Impersonation.id.in_(old.limit(MAX_ENDED_AT_ONCE))
        return await self._end(session, "expired", some, unnoticed=True)

    async def _end(
        self, session: AsyncSession, reason: str, wanted: ColumnElement[bool], *, unnoticed: bool = False
    ) -> int:
        """End some, and record it: as done by who does it now, or where nobody does, by the admin who had begun it."""
        now = self._clock.now()
        ended = (
            await session.execute(
                update(Impersonation)
                .where(Impersonation.ended_at.is_(None), wanted)
                .values(ended_at=now, end_reason=reason[:64])
                .returning(Impersonation.actor_id, Impersonation.target_id, Impersonation.expires_at)
                .execution_options(synchronize_session=False)
            )
        ).all()
        for actor_id, target_id, expires_at in ended:
            why = "expired" if expires_at <= now else reason
            facts = {"actor_id": str(actor_id), "target_id": target_id, "reason": why}
            here = context.current()
            token = context.enter(
                context.Context(actor_id=str(actor_id), principal_id=target_id) if unnoticed else here
            )
            try:
                await self._trail.record(session, STOPPED, target=f"user:{target_id}", after=facts)
            finally:
                context.leave(token)
            after_commit(session, partial(_log.info, STOPPED, extra=facts))
        return len(ended)


def _claims(row: Impersonation) -> dict[str, str | int]:
    return {
        "actor_id": str(row.actor_id),
        "target_id": row.target_id,
        "session_id": str(row.session_id),
        "issued_at": int(row.started_at.timestamp()),
        "expires_at": int(row.expires_at.timestamp()),
        "nonce": row.id.hex,
    }
