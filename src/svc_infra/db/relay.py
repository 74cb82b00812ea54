"""The relay: takes messages out of the outbox and hands each to the handler of its topic, at least once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, and_, delete, exists, or_, select, update
from sqlalchemy.orm import aliased

from svc_infra.db.database import AsyncDatabase
from svc_infra.db.models import OutboxRow
from svc_infra.db.outbox import OutboxMessage
from svc_infra.errors import ConfigurationError, SvcInfraError
from svc_infra.obs import context, metrics
from svc_infra.types import Clock, SystemClock

FIRST_DELAY_SECONDS = 1.0
"""The delay after a message's first failure; it doubles with each further one."""
MAX_DELAY_SECONDS = 300.0
"""The longest delay between two deliveries of a message that keeps failing."""
ORPHANS_INTERVAL_SECONDS = 60.0
"""How often the relay looks for topics that nobody handles."""

Handler = Callable[[OutboxMessage], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """Messages claimed together. While `available_at` is still `until`, nobody else has claimed them since."""

    messages: dict[int, OutboxMessage]
    until: datetime
    deadline: float


class OutboxRelay:
    """Delivers messages; any number of relays share one outbox.

    A relay claims messages by moving them out of sight for a lease, calls the handler and deletes them. One that dies
    leaves its messages to the others when the lease ends, so a handler can see a message again, with the same id, and
    must have one effect. Of each key only the oldest message is in delivery; a failing one holds the later ones back.
    Topics do not wait for each other.

    Args:
        db: The database of the outbox.
        handlers: The handler of each topic; more with `register`.
        batch_size: Messages claimed at once.
        lease_seconds: The longest that handling one batch may take; a handler that takes longer is cancelled.
        poll_interval_seconds: How often to look for messages of other processes; those of this one wake the relay.
        clock: The machine's own by default.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        *,
        handlers: Mapping[str, Handler] | None = None,
        batch_size: int = 100,
        lease_seconds: float = 30.0,
        poll_interval_seconds: float = 0.5,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._handlers: dict[str, Handler] = dict(handlers or {})
        self._batch_size = batch_size
        self._lease_seconds = lease_seconds
        self._poll_interval_seconds = poll_interval_seconds
        self._clock = clock or SystemClock()
        self._wakes: dict[str, asyncio.Event] = {}
        self._orphans: set[str] = set()

    @property
    def topics(self) -> list[str]:
        """The topics that have a handler."""
        return list(self._handlers)

    def register(self, topic: str, handler: Handler) -> None:
        """Handle a topic.

        Raises:
            ConfigurationError: The topic has a handler, or the relay runs already.
        """
        if topic in self._handlers:
            raise ConfigurationError(f"The outbox topic {topic!r} has a handler already.")
        if self._wakes:
            raise ConfigurationError(f"The outbox relay runs already: register {topic!r} before the app starts.")
        self._handlers[topic] = handler

    def wake(self) -> None:
        """Look for messages now."""
        for event in self._wakes.values():
            event.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; then finish the messages in hand and give back the rest."""
        self._wakes = {topic: asyncio.Event() for topic in self._handlers}
        try:
            async with asyncio.TaskGroup() as group:
                for topic, wake in self._wakes.items():
                    group.create_task(self._serve(topic, wake, stop), name=f"outbox-{topic}")
                watch = group.create_task(self._watch_orphans(), name="outbox-orphans")
                await stop.wait()
                watch.cancel()
                self.wake()
        finally:
            self._wakes = {}

    async def run_once(self) -> int:
        """Deliver one batch of each topic.

        Returns:
            How many messages were handled, successfully or not.
        """
        never = asyncio.Event()
        return sum([await self._deliver(topic, never) for topic in self._handlers])

    async def _serve(self, topic: str, wake: asyncio.Event, stop: asyncio.Event) -> None:
        while not stop.is_set():
            wake.clear()
            try:
                if await self._deliver(topic, stop):
                    continue
            except SvcInfraError:
                _log.exception("outbox.database_failed", extra={"topic": topic})
            try:
                async with asyncio.timeout(self._poll_interval_seconds):
                    await wake.wait()
            except TimeoutError:
                continue

    async def _deliver(self, topic: str, stop: asyncio.Event) -> int:
        batch = await self._claim(topic)
        if not batch.messages:
            return 0
        done: list[int] = []
        failed: dict[int, Exception] = {}
        for position, message in batch.messages.items():
            left = batch.deadline - asyncio.get_running_loop().time()
            if left <= 0 or stop.is_set():
                break
            try:
                async with asyncio.timeout(left):
                    with context.restored(message.headers):
                        await self._handlers[topic](message)
            except Exception as error:  # noqa: BLE001  it is kept with the message, which is delivered again
                failed[position] = error
            else:
                done.append(position)
        await self._settle(batch, done, failed)
        metrics.increment("outbox.delivered", len(done), topic=topic)
        return len(done) + len(failed)

    async def _claim(self, topic: str) -> _Batch:
        deadline = asyncio.get_running_loop().time() + self._lease_seconds
        now = self._clock.now()
        until = now + timedelta(seconds=self._lease_seconds)
        due = _due(topic, now, self._batch_size).cte("due")
        claim = (
            update(OutboxRow)
            .where(OutboxRow.position.in_(select(due.c.position)))
            .values(available_at=until, attempts=OutboxRow.attempts + 1)
            .returning(*OutboxRow.__table__.columns)
            .execution_options(synchronize_session=False)
        )
        async with self._db.session() as session:
            rows = (await session.execute(claim)).all()
        messages = {
            row.position: OutboxMessage(
                id=row.id,
                topic=row.topic,
                key=row.key,
                payload=row.payload,
                headers=row.headers,
                attempts=row.attempts,
                created_at=row.created_at,
            )
            for row in sorted(rows, key=lambda row: row.position)
        }
        return _Batch(messages, until, deadline)

    async def _settle(self, batch: _Batch, done: list[int], failed: dict[int, Exception]) -> None:
        now = self._clock.now()
        unspent = batch.messages.keys() - set(done) - failed.keys()
        held = OutboxRow.available_at == batch.until
        async with self._db.session() as session:
            if done:
                await session.execute(delete(OutboxRow).where(OutboxRow.position.in_(done), held))
            for position, error in failed.items():
                message = batch.messages[position]
                delay = min(FIRST_DELAY_SECONDS * 2.0 ** min(message.attempts - 1, 30), MAX_DELAY_SECONDS)
                metrics.increment("outbox.failed", topic=message.topic)
                _log.warning(
                    "outbox.delivery_failed",
                    exc_info=error,
                    extra={"topic": message.topic, "message_id": str(message.id), "attempts": message.attempts},
                )
                await session.execute(
                    update(OutboxRow)
                    .where(OutboxRow.position == position, held)
                    .values(
                        available_at=now + timedelta(seconds=delay),
                        last_error=f"{type(error).__name__}: {error}"[:500],
                    )
                )
            if unspent:
                await session.execute(
                    update(OutboxRow)
                    .where(OutboxRow.position.in_(unspent), held)
                    .values(available_at=now, attempts=OutboxRow.attempts - 1)
                )

    async def _watch_orphans(self) -> None:
        while True:
            try:
                await self._report_orphans()
            except SvcInfraError:
                _log.exception("outbox.database_failed")
            await asyncio.sleep(ORPHANS_INTERVAL_SECONDS)

    async def _report_orphans(self) -> None:
        async with self._db.session(read_only=True) as session:
            found = await session.scalars(
                select(OutboxRow.topic).where(OutboxRow.topic.not_in(self._handlers)).distinct().limit(100)
            )
        for topic in set(found.all()) - self._orphans:
            self._orphans.add(topic)
            _log.error("outbox.topic_without_handler", extra={"topic": topic})


def _due(topic: str, now: datetime, limit: int) -> Select[int]:
    earlier = aliased(OutboxRow)
    same_key = and_(earlier.topic == topic, earlier.key == OutboxRow.key, earlier.position < OutboxRow.position)
    return (
        select(OutboxRow.position)
        .where(OutboxRow.topic == topic, OutboxRow.available_at <= now)
        .where(or_(OutboxRow.key.is_(None), ~exists().where(same_key)))
        .order_by(OutboxRow.available_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
