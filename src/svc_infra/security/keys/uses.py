"""When keys were used: noted in memory, written behind the requests.

A use of the last minute is lost when the process is killed; nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import Table, bindparam, or_, update

from svc_infra.db import AsyncDatabase
from svc_infra.errors import SvcInfraError
from svc_infra.obs.metrics import metrics
from svc_infra.security.keys.models import ApiKey
from svc_infra.types import Clock, SystemClock

WRITE_INTERVAL_SECONDS = 60.0
"""The least time between two writes about one key."""
MAX_NOTED = 10_000
"""Keys whose use is noted between two writes; more are counted (`api_keys.uses_dropped`) and not noted."""

_TABLE = cast(Table, ApiKey.__table__)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Use:
    at: datetime
    new_hash: str | None = None


class KeyUses:
    """The uses that are not written yet.

    Args:
        db: Where they are written.
        clock: Where the time comes from.
    """

    def __init__(self, db: AsyncDatabase, *, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or SystemClock()
        self._noted: dict[UUID, _Use] = {}

    def note(self, key_id: UUID, *, new_hash: str | None = None) -> None:
        """Note that a key was used; and its hash with the newest secret, where it is stored with an older one."""
        if key_id not in self._noted and len(self._noted) >= MAX_NOTED:
            metrics.increment("api_keys.uses_dropped")
            return
        self._noted[key_id] = _Use(self._clock.now(), new_hash)

    async def flush(self) -> None:
        """Write what was noted, in a unit of work of its own."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        rows = [
            {"key": key_id, "at": use.at, "before": use.at - timedelta(seconds=WRITE_INTERVAL_SECONDS)}
            for key_id, use in sorted(noted.items())  # two processes lock the rows in the same order
        ]
        hashes = [{"key": key_id, "hash": use.new_hash} for key_id, use in sorted(noted.items()) if use.new_hash]
        is_it = _TABLE.c.id == bindparam("key")
        is_old = or_(_TABLE.c.last_used_at.is_(None), _TABLE.c.last_used_at <= bindparam("before"))
        try:
            async with self._db.session() as session:
                connection = await session.connection()
                used = update(_TABLE).where(is_it, is_old).values(last_used_at=bindparam("at"))
                await connection.execute(used, rows)
                if hashes:
                    await connection.execute(update(_TABLE).where(is_it).values(key_hash=bindparam("hash")), hashes)
        except SvcInfraError:
            self._noted = {**noted, **self._noted}
            raise

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Write every minute, and once more at the end."""
        task = asyncio.create_task(self._forever(), name="api-key-uses")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._attempt()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(WRITE_INTERVAL_SECONDS)
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self.flush()
        except SvcInfraError as error:  # the next minute tries again
            metrics.increment("api_keys.uses_not_written")
            _log.warning("api_keys.uses_not_written", extra={"error": error.detail})
