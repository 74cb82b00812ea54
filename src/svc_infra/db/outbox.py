"""The outbox: messages written in the caller's transaction, handed on after it commits, at least once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import String, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.models import OutboxRow
from svc_infra.db.unit_of_work import after_commit
from svc_infra.errors import ValidationError
from svc_infra.obs import context
from svc_infra.types import Clock, SystemClock, new_id

MAX_PAYLOAD_BYTES = 1024 * 1024
"""The largest payload of one message, as JSON."""

_LOCK = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("key", type_=String), 0)))
_INSERT = insert(OutboxRow.__table__).on_conflict_do_nothing(index_elements=["id"])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A message as its handler gets it.

    Attributes:
        id: The same with every delivery: handlers must have one effect for each id.
        headers: Tenant, request id, trace and principal of the unit of work that added it.
        attempts: Deliveries begun, this one included.
    """

    id: UUID
    topic: str
    key: str | None
    payload: Any
    headers: Mapping[str, str]
    attempts: int
    created_at: datetime


class Outbox:
    """Writes messages.

    Args:
        wake: Called after a unit of work that added messages has committed: `OutboxRelay.wake`.
        clock: The machine's own by default.
    """

    def __init__(self, *, wake: Callable[[], None] | None = None, clock: Clock | None = None) -> None:
        self._wake = wake
        self._clock = clock or SystemClock()

    async def add(
        self, session: AsyncSession, topic: str, payload: Any, *, key: str | None = None, message_id: UUID | None = None
    ) -> UUID:
        """Write a message in this unit of work: delivered after its commit, gone with its rollback.

        Args:
            session: The unit of work.
            topic: Names the handler; up to 100 characters.
            payload: What JSON can hold, up to `MAX_PAYLOAD_BYTES`.
            key: Messages of one topic and key are delivered one by one in the order in which they were added; another
                unit of work that adds one with the same key waits for this one to end. Up to 200 characters.
            message_id: Adding a message whose id is waiting already changes nothing.

        Returns:
            The message's id.

        Raises:
            ValidationError: The payload is no JSON or too large, or the topic or key is empty or too long.
        """
        _check(topic, payload, key)
        message_id = message_id or new_id()
        if key is not None and session.get_bind().dialect.name == "postgresql":
            # Positions are given out before the commit: without this, a later one could become visible earlier.
            await session.execute(_LOCK, {"key": f"{topic}:{key}"})
        now = self._clock.now()
        row = {
            "id": message_id,
            "topic": topic,
            "key": key,
            "payload": payload,
            "headers": context.current().carried(),
            "attempts": 0,
            "created_at": now,
            "available_at": now,
        }
        await session.execute(_INSERT, row)
        if self._wake is not None:
            after_commit(session, self._wake)
        return message_id


def _check(topic: str, payload: Any, key: str | None) -> None:
    if not 0 < len(topic) <= 100:
        raise ValidationError("An outbox topic has 1 to 100 characters.")
    if key is not None and not 0 < len(key) <= 200:
        raise ValidationError("An outbox key has 1 to 200 characters.")
    try:
        size = len(json.dumps(payload, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValidationError(f"An outbox payload must be JSON: {error}.") from error
    if size > MAX_PAYLOAD_BYTES:
        raise ValidationError(f"An outbox payload has {size} bytes; {MAX_PAYLOAD_BYTES} are allowed.")
