"""Which logins are alive, remembered for as long as nothing about them, their accounts or roles changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy.orm
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cache import Cache
from svc_infra.db import AsyncDatabase
from svc_infra.security.methods import MULTIPLE
from svc_infra.security.models import HasAccount, Session
from svc_infra.security.remembered import Remembered, forget_changes
from svc_infra.security.sessions.second_step import SecondFactors
from svc_infra.types import Clock


@dataclass(frozen=True, slots=True)
class Live:
    """A login that has not ended, and its active account."""

    user_id: UUID
    email: str
    roles: tuple[str, ...]
    expires_at: datetime
    authenticated_at: datetime
    methods: tuple[str, ...]
    lacks_second_factor: bool


class LiveSessions(Remembered[Live]):
    """Finds logins that are alive.

    Args:
        db: Where they are kept.
        user_model: The app's users.
        second_factors: Knows whose login needs a second factor; None where nobody's does.
        cache: Where they are remembered; None reads the database each time.
        ttl_seconds: For how long at most.
        clock: Where the time comes from.
    """

    everything = "auth:everything"

    def __init__(
        self,
        db: AsyncDatabase,
        user_model: type[HasAccount],
        *,
        second_factors: SecondFactors | None = None,
        cache: Cache | None = None,
        ttl_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(_reader(self._read), Live, tags=_tags, cache=cache, ttl_seconds=ttl_seconds, clock=clock)
        self._db = db
        self._user = user_model
        self._second_factors = second_factors

    async def find(self, session_id: UUID, user_id: UUID) -> Live | None:
        """The login, if it and its account are alive now."""
        return await self.found(session_id.hex, user_id.hex)

    def forget(
        self,
        session: AsyncSession | sqlalchemy.orm.Session,
        *,
        user_id: UUID | None = None,
        session_id: UUID | None = None,
    ) -> None:
        """Forget a login, all of an account, or everything, once this unit of work is committed."""
        kind = "user" if user_id is not None else "session"
        one = user_id if user_id is not None else session_id
        self.forget_tag(session, self.everything if one is None else _tag(kind, one.hex))

    async def _read(self, session_id: UUID, user_id: UUID) -> Live | None:
        user = self._user
        wanted = (
            select(user.id, user.email, user.roles, Session.expires_at, Session.authenticated_at, Session.methods)
            .join(Session, Session.user_id == user.id)
            .where(
                Session.id == session_id,
                Session.revoked_at.is_(None),
                Session.expires_at > self.now(),
                user.id == user_id,
                user.is_active,
            )
        )
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(wanted)).one_or_none()
            if row is None:
                return None
            methods, roles = tuple(row.methods.split()), tuple(row.roles)
            lacks = (
                self._second_factors is not None
                and MULTIPLE not in methods
                and await self._second_factors.is_required(session, row.id, roles)
            )
        return Live(row.id, row.email, roles, row.expires_at, row.authenticated_at, methods, lacks)


def _reader(read: Callable[[UUID, UUID], Awaitable[Live | None]]) -> Callable[[str, str], Awaitable[Live | None]]:
    async def live_login(session_id: str, user_id: str) -> Live | None:
        return await read(UUID(session_id), UUID(user_id))

    return live_login


def _tag(kind: str, identifier: str) -> str:
    return f"auth:{kind}:{identifier}"


def _tags(session_id: str, user_id: str) -> list[str]:
    return [_tag("session", session_id), _tag("user", user_id), LiveSessions.everything]


forget_changes(
    LiveSessions,
    {
        HasAccount: lambda account: _tag("user", account.id.hex),
        Session: lambda login: _tag("session", login.id.hex),
    },
)
