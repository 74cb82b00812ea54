"""The inbox: which messages a consumer has already handled."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.models import InboxRow
from svc_infra.types import Clock, SystemClock

_MARK = insert(InboxRow.__table__).on_conflict_do_nothing().returning(InboxRow.message_id)  # type: ignore[arg-type]


class Inbox:
    """Turns at-least-once delivery into exactly one effect: the mark commits with the effect or not at all."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    async def mark(self, session: AsyncSession, consumer: str, message_id: UUID | str) -> bool:
        """Note in this unit of work that the consumer handles the message.

        A second unit of work that marks the same message meanwhile waits for the first one to end.

        Returns:
            True when the message is new; False when it was handled before and must be skipped.
        """
        row = {"consumer": consumer, "message_id": str(message_id), "received_at": self._clock.now()}
        return await session.scalar(_MARK, row) is not None

    async def purge(self, session: AsyncSession, *, older_than: timedelta, limit: int = 1000) -> int:
        """Forget marks that are older than any repetition can be.

        Args:
            session: The unit of work.
            older_than: Their least age.
            limit: How many at most.

        Returns:
            How many were forgotten; fewer than `limit` when none is left.
        """
        key = (InboxRow.consumer, InboxRow.message_id)
        old = select(*key).where(InboxRow.received_at < self._clock.now() - older_than)
        oldest = old.order_by(InboxRow.received_at).limit(limit)
        purged = await session.scalars(delete(InboxRow).where(tuple_(*key).in_(oldest)).returning(InboxRow.message_id))
        return len(purged.all())
