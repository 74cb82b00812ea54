"""Schedules in the application's own database."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too

from svc_infra.db import AsyncDatabase
from svc_infra.db.columns import UtcDateTime
from svc_infra.db.models import OutboxRow
from svc_infra.jobs.redis.queue import outbox_id
from svc_infra.jobs.schedules.models import svc_schedule_ticks, svc_schedules
from svc_infra.jobs.schedules.store import SCHEDULES_LIMIT, TICKS_KEPT, Look, Outcome, Record, StoreJob, Tick
from svc_infra.types import Clock, SystemClock

_s, _t = svc_schedules.c, svc_schedule_ticks.c
_INSERT = insert(svc_schedules).on_conflict_do_nothing().returning(_s.name)
_UPDATE = (
    sa.update(svc_schedules)
    .where(_s.name == sa.bindparam("held_name"), _s.version == sa.bindparam("read_version"))
    .returning(_s.name)
)
_BESIDE_THE_TIME = sa.select(sa.literal(1)).subquery().outerjoin(svc_schedules, sa.true())  # a row even without any


class SqlScheduleStore:
    """Keeps schedules in SQLite or PostgreSQL: a tick and its job are written in one transaction.

    Args:
        db: The database; `migrate.upgrade` has made its tables. The queue must be able to store jobs in its sessions.
        clock: Where the time comes from; by default the PostgreSQL server's clock, which all schedulers share, or this
            machine's for SQLite.
    """

    def __init__(self, db: AsyncDatabase, *, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock
        self._server_clock = clock is None and db.dialect == "postgresql"

    async def look(self) -> Look:
        """See `ScheduleStore.look`."""
        now = sa.func.clock_timestamp(type_=UtcDateTime) if self._server_clock else sa.null()
        found = sa.select(now.label("now"), svc_schedules).select_from(_BESIDE_THE_TIME).limit(SCHEDULES_LIMIT)
        async with self._db.session(read_only=True) as session:
            rows = [row._asdict() for row in await session.execute(found)]
        times = [row.pop("now") for row in rows]
        time = times[0] if self._server_clock else (self._clock or SystemClock()).now()
        return Look(time, {row["name"]: Record(**row) for row in rows if row["name"] is not None})

    async def insert(self, record: Record) -> bool:
        """See `ScheduleStore.insert`."""
        async with self._db.session() as session:
            return bool((await session.execute(_INSERT, asdict(record))).all())

    async def write(
        self, before: Record, after: Record, ticks: Sequence[Tick] = (), store_job: StoreJob | None = None
    ) -> builtins.list[Tick] | None:
        """See `ScheduleStore.write`."""
        values = {**asdict(after), "version": before.version + 1}
        del values["name"]
        async with self._db.session() as session:
            held = {"held_name": before.name, "read_version": before.version}
            if not (await session.execute(_UPDATE.values(values), held)).all():
                return None
            if not ticks:
                return []
            recorded = set(await session.scalars(_record(before.name, ticks)))
            accepted = [tick for tick in ticks if tick.due in recorded]
            if store_job is not None:
                for tick in accepted:
                    if tick.outcome is Outcome.STORED:
                        await store_job(tick, session)
        return accepted

    async def delete(self, record: Record) -> bool:
        """See `ScheduleStore.delete`."""
        deleted = sa.delete(svc_schedules).where(_s.name == record.name, _s.version == record.version)
        async with self._db.session() as session:
            return bool((await session.execute(deleted.returning(_s.name))).all())

    async def is_under_way(self, job_id: str) -> bool:
        """See `ScheduleStore.is_under_way`: until then its message is in the outbox."""
        found = sa.select(OutboxRow.id).where(OutboxRow.id == outbox_id(job_id))
        async with self._db.session(read_only=True) as session:
            return (await session.scalars(found)).first() is not None

    async def ticks(self, name: str, limit: int = 50) -> builtins.list[Tick]:
        """See `ScheduleStore.ticks`."""
        found = sa.select(svc_schedule_ticks).where(_t.schedule == name).order_by(_t.due.desc()).limit(limit)
        async with self._db.session(read_only=True) as session:
            return [_tick(row._asdict()) for row in await session.execute(found)]

    async def purge(self, *, before: datetime, keep: int = TICKS_KEPT, limit: int = 10_000) -> int:
        """See `ScheduleStore.purge`."""
        place = sa.func.row_number().over(partition_by=_t.schedule, order_by=_t.due.desc()).label("place")
        placed = sa.select(_t.schedule, _t.due, _t.decided_at, place).subquery()
        old = (
            sa.select(placed.c.schedule, placed.c.due)
            .where((placed.c.decided_at < before) | (placed.c.place > keep))
            .limit(limit)
        )
        deleted = sa.delete(svc_schedule_ticks).where(sa.tuple_(_t.schedule, _t.due).in_(old)).returning(_t.due)
        async with self._db.session() as session:
            return len((await session.execute(deleted)).all())


def _record(name: str, ticks: Sequence[Tick]) -> sa.Executable:
    """Insert the ticks, or change those that have no job; the times of those that this has done."""
    new = insert(svc_schedule_ticks).values([{"schedule": name, **asdict(tick)} for tick in ticks])
    changed = {column: new.excluded[column] for column in ("outcome", "job_id", "decided_at")}
    return new.on_conflict_do_update(
        index_elements=[_t.schedule, _t.due], set_=changed, where=_t.outcome != Outcome.STORED.value
    ).returning(_t.due)


def _tick(values: dict[str, Any]) -> Tick:
    del values["schedule"]
    values["outcome"] = Outcome(values["outcome"])
    values["reason"] = values["reason"] and Outcome(values["reason"])
    return Tick(**values)
