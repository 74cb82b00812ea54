"""The queue in SQLite: all steps of one moment are one transaction in the thread of the one connection that writes."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from svc_infra.db import AsyncDatabase
from svc_infra.db.errors import translated
from svc_infra.jobs.backends.checked import SWEEP_LIMIT_JOBS, lease_ended
from svc_infra.jobs.backends.turns import Gate, Head, Lane, Search, Turns, micros, queue_key, rank_of, weights_of
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import FORMAT_VERSION, Job, JobState, NewJob
from svc_infra.jobs.queue import Beat, QueueInfo
from svc_infra.jobs.sql.models import JOB_COLUMNS, SCHEDULED, info_of, job_of
from svc_infra.types import Clock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

LANES_LIMIT = 1000
"""How many lanes one claim looks at; more take their turns after those."""
FEW_LANES = 10
"""Of more lanes a claim reads one job each at first."""
GROUP_LIMIT_STEPS = 1000
"""How many steps one transaction holds."""

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]

_TIMES = [JOB_COLUMNS.index(name) for name in JOB_COLUMNS if name.endswith("_at")]
_INSERT = """
INSERT INTO svc_jobs (id, name, queue, state, priority, max_attempts, backoff_seconds, timeout_seconds, payload,
    context, unique_key, created_at, available_at, tenant, version, limit_key, limit_concurrency, limit_rate,
    limit_period_seconds, rank)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_ENDED = """
SELECT id, worker_id, started_at, lease_expires_at, crashes, cancel_requested FROM svc_jobs
WHERE state = 'running' AND queue = ? AND lease_expires_at <= ? ORDER BY lease_expires_at LIMIT ?
"""
_CRASHED = """
UPDATE svc_jobs SET state = ?, crashes = crashes + 1, finished_at = ?, last_error = ?, token = NULL,
    lease_expires_at = NULL
WHERE id = ?
"""
_DUE = """
UPDATE svc_jobs SET state = 'ready' WHERE id IN (
    SELECT id FROM svc_jobs WHERE state = 'scheduled' AND queue = ? AND available_at <= ? ORDER BY available_at LIMIT ?)
"""
_LANE = """
SELECT queue, tenant, limit_key FROM svc_jobs WHERE state = 'ready' AND queue = ? AND {}
ORDER BY tenant, limit_key LIMIT 1
"""
_FIRST_LANE = _LANE.format("tenant >= ?")
# Two steps: of `(tenant, limit_key) > (?, ?)` SQLite seeks the tenant alone, and reads all jobs that it has.
_NEXT_LANE_OF_TENANT = _LANE.format("tenant = ? AND limit_key > ?")
_LANE_OF_NEXT_TENANT = _LANE.format("tenant > ?")
_HEADS = """
SELECT rank, id, limit_concurrency, limit_rate, limit_period_seconds FROM svc_jobs
WHERE state = 'ready' AND queue = ? AND tenant = ? AND limit_key = ? ORDER BY rank, id LIMIT ?
"""
_START = f"""
UPDATE svc_jobs SET state = 'running', attempts = attempts + 1, started_at = ?, token = ?, worker_id = ?,
    lease_expires_at = ?
WHERE id = ? RETURNING {", ".join(JOB_COLUMNS)}
"""  # noqa: S608
_SUCCEED = """
UPDATE svc_jobs SET state = 'succeeded', finished_at = ?, token = NULL, lease_expires_at = NULL, result = ?
WHERE id = ? AND token = ? AND state = 'running'
"""
_RENEW = """
UPDATE svc_jobs SET lease_expires_at = ? WHERE id = ? AND token = ? AND state = 'running' RETURNING id, cancel_requested
"""


class SqliteJobs:
    """Runs the steps that a queue takes most often; those that wait for the writer go into one transaction together.

    Args:
        db: The database.
        clock: Where the time comes from, once the transaction has begun.
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(self, db: AsyncDatabase, *, clock: Clock, max_crashes: int) -> None:
        self._db = db
        self._clock = clock
        self._max_crashes = max_crashes
        self._wakeup = Wakeup()
        self._turns = Turns()
        self._search = Search()
        self._cursors: dict[str, Lane] = {}  # by queue, the last lane of a claim that found too many
        self._limited: set[str] = set()  # queues with limits, as the last claim found them
        self._due: datetime | None = None  # when the next job of this process becomes due
        self._waiting: deque[tuple[bool, Step[Any], asyncio.Future[Any]]] = deque()
        self._writing: asyncio.Task[None] | None = None

    @property
    def now(self) -> datetime:
        """What to give to statements as the time."""
        return self._clock.now()

    async def insert(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> tuple[int, Callable[[], None]]:
        """Store jobs whose ids and unique keys are free: how many, and what to call when that is committed."""
        now = self.now
        dues = [max(now, job.at or now + timedelta(seconds=job.delay_seconds)) for job in jobs]
        rows = [_row(job, now, due) for job, due in zip(jobs, dues, strict=True)]

        def store(database: sqlite3.Connection) -> int:
            return sum(database.execute(_INSERT, row).rowcount for row in rows)

        def committed() -> None:
            self.comes(min(dues) - now)

        if session is None:
            return await self._write(store), committed
        pooled = await (await session.connection()).get_raw_connection()
        driver: Any = pooled.driver_connection
        try:
            return await driver._execute(store, driver._conn), committed
        except sqlite3.Error as error:
            raise translated(error) from error

    def came(self, lane: Lane, rank: int) -> None:
        """A job waits here."""
        self._wakeup.notify()

    def comes(self, wait: timedelta) -> None:
        """A job becomes due then."""
        due = self.now + wait
        self._due = due if self._due is None else min(self._due, due)
        self._wakeup.notify()

    def changed(self) -> None:
        """Something else may have become possible."""
        self._wakeup.notify()

    def freed(self, jobs: Sequence[Job]) -> None:
        """These have ended: there may be room under a limit."""
        if any(job.limit_key or job.queue in self._limited for job in jobs):
            self._wakeup.notify()

    async def tell(self) -> None:
        """Let this process look; the others do when their `wait` ends."""
        self._wakeup.notify()

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        if self._due is not None and (until_due := (self._due - self.now).total_seconds()) > 0:
            timeout_seconds = min(timeout_seconds, until_due)
        await self._wakeup.wait(timeout_seconds)

    async def claim(self, worker_id: str, queues: list[str], limit: int, lease_seconds: float) -> list[Job]:
        """See `JobQueue.reserve`."""
        started = await self._write(lambda database: self._claim(database, worker_id, queues, limit, lease_seconds))
        if self._search.goes_on(len(started), limit, more=bool(self._cursors)):
            self._wakeup.notify()
        return [job_of(_with_times(row)) for row in started]

    async def succeed(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        """Finish these jobs; the ids of those that were held."""

        def finish(database: sqlite3.Connection) -> set[str]:
            now = _text(self.now)
            done = (
                (job.id, database.execute(_SUCCEED, (now, result, job.id, job.token)).rowcount)
                for job, result in results
            )
            return {job_id for job_id, count in done if count}

        return await self._write(finish)

    async def renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        """See `JobQueue.heartbeat`; before every claim that waits for the writer too."""

        def extend(database: sqlite3.Connection) -> list[tuple[str, bool]]:
            end = _text(self.now + timedelta(seconds=lease_seconds))
            return [row for job in jobs for row in database.execute(_RENEW, (end, job.id, job.token)).fetchall()]

        rows = await self._write(extend, first=True)
        return Beat(frozenset(row[0] for row in rows), frozenset(row[0] for row in rows if row[1]))

    def _claim(
        self, database: sqlite3.Connection, worker_id: str, queues: list[str], limit: int, lease_seconds: float
    ) -> list[tuple[Any, ...]]:
        now = self.now
        for queue in queues:
            self._sweep(database, queue, now)
        self._due = None
        configured = _configured(database, queues)
        self._limited = {name for name, info in configured.items() if info.is_limited}
        lanes = self._lanes(
            database, [name for name in queues if name not in configured or not configured[name].paused]
        )
        pages = (limit,) if len(lanes) <= FEW_LANES else (1, limit)
        heads = [_heads(database, lane, pages) for lane in lanes]
        gate = _gate(database, now, lanes, configured)
        due = dict(gate.due)
        chosen = self._turns.choose(heads, limit, gate, weights_of(queues, configured))
        spent = [(key, at) for key, at in gate.due.items() if due.get(key) != at]
        database.executemany("INSERT OR REPLACE INTO svc_job_limits (key, due) VALUES (?, ?)", spent)
        facts = _text(now), worker_id, _text(now + timedelta(seconds=lease_seconds))
        return [
            database.execute(_START, (facts[0], secrets.token_hex(16), *facts[1:], head.id)).fetchone()
            for head in sorted(chosen)
        ]

    def _sweep(self, database: sqlite3.Connection, queue: str, now: datetime) -> None:
        for row in database.execute(_ENDED, (queue, _text(now), SWEEP_LIMIT_JOBS)).fetchall():
            job_id, worker_id, started_at, lease_expires_at, crashes, cancelled = row
            end = JobState.CANCELLED if cancelled else JobState.DEAD if crashes + 1 >= self._max_crashes else None
            error = lease_ended(worker_id, started_at, lease_expires_at)
            state = JobState.READY if end is None else end
            database.execute(_CRASHED, (state.value, None if end is None else _text(now), error, job_id))
        database.execute(_DUE, (queue, _text(now), SWEEP_LIMIT_JOBS))

    def _lanes(self, database: sqlite3.Connection, queues: Sequence[str]) -> list[Lane]:
        """Where jobs wait; when there are too many, others each time, and some of every queue."""
        lanes: list[Lane] = []
        for number, queue in enumerate(queues):
            most = (LANES_LIMIT - len(lanes)) // (len(queues) - number)
            found = list(islice(_lanes_of(database, queue, self._cursors.pop(queue, None)), most))
            if found and len(found) == most:
                self._cursors[queue] = found[-1]
            lanes += found
        return lanes

    async def _write(self, step: Step[T], *, first: bool = False) -> T:
        """Run a step with others that wait, in one transaction; it fails alone."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((not first, step, result))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await result

    async def _write_all(self) -> None:
        while self._waiting:
            taken: list[tuple[bool, Step[Any], asyncio.Future[Any]]] = []
            try:
                pooled = await self._db.engine.raw_connection()
                try:
                    driver: Any = pooled.driver_connection
                    outcomes = await driver._execute(_run_all, driver._conn, self._waiting, taken)
                except BaseException:
                    await greenlet_spawn(pooled.invalidate)
                    raise
                finally:
                    await greenlet_spawn(pooled.close)
            except (SQLAlchemyError, sqlite3.Error) as error:
                outcomes = [translated(error)] * (len(taken) or len(self._waiting))
            for (_, _, result), outcome in zip(taken or _all_of(self._waiting), outcomes, strict=True):
                if result.cancelled():
                    continue
                if isinstance(outcome, BaseException):
                    result.set_exception(outcome)
                else:
                    result.set_result(outcome)


def _heads(database: sqlite3.Connection, lane: Lane, pages: Sequence[int]) -> Iterator[Head]:
    """The first jobs of a lane: so many, and more when those are not enough."""
    taken = 0
    for most in pages:
        for row in database.execute(_HEADS, (*lane, most)).fetchall()[taken:]:
            yield Head(row[0], row[1], lane, row[2], row[3], row[4] or 60.0)
        taken = most


def _lanes_of(database: sqlite3.Connection, queue: str, after: Lane | None) -> Iterator[Lane]:
    """Once round, beginning after this one: straight from lane to lane, however many jobs wait in each."""
    lane = after
    while lane is not None and (lane := _lane_after(database, lane)) is not None:
        yield lane
    row = database.execute(_FIRST_LANE, (queue, "")).fetchone()
    lane = None if row is None else Lane(*row)
    while lane is not None and (after is None or lane <= after):
        yield lane
        lane = _lane_after(database, lane)


def _lane_after(database: sqlite3.Connection, lane: Lane) -> Lane | None:
    row = (
        database.execute(_NEXT_LANE_OF_TENANT, lane).fetchone()
        or database.execute(_LANE_OF_NEXT_TENANT, lane[:2]).fetchone()
    )
    return None if row is None else Lane(*row)


def _all_of(waiting: deque[tuple[bool, Step[Any], asyncio.Future[Any]]]) -> list[Any]:
    return [waiting.popleft() for _ in range(len(waiting))]


def _run_all(
    database: sqlite3.Connection,
    waiting: deque[tuple[bool, Step[Any], asyncio.Future[Any]]],
    taken: list[tuple[bool, Step[Any], asyncio.Future[Any]]],
) -> list[Any]:
    """In the driver's thread: what waits once the write lock is ours, heartbeats first."""
    outcomes: list[Any] = []
    database.execute("BEGIN IMMEDIATE")
    try:
        taken.extend(waiting.popleft() for _ in range(min(len(waiting), GROUP_LIMIT_STEPS)))
        taken.sort(key=lambda one: one[0])
        for _, step, _ in taken:
            database.execute("SAVEPOINT step")
            try:
                outcomes.append(step(database))
            except Exception as error:  # noqa: BLE001 - it is the answer to whoever asked for the step
                database.execute("ROLLBACK TO step")
                outcomes.append(translated(error) if isinstance(error, sqlite3.Error) else error)
            database.execute("RELEASE step")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return outcomes


def _configured(database: sqlite3.Connection, queues: Sequence[str]) -> dict[str, QueueInfo]:
    names = ("name", "paused", "concurrency", "rate", "period_seconds", "weights")
    found = database.execute(f"SELECT {', '.join(names)} FROM svc_job_queues").fetchall()  # noqa: S608
    infos = (info_of(dict(zip(names, row, strict=True))) for row in found if row[0] in queues)
    return {info.name: info for info in infos}


def _gate(database: sqlite3.Connection, now: datetime, lanes: Sequence[Lane], configured: dict[str, QueueInfo]) -> Gate:
    running: dict[str, int] = {}
    due: dict[str, int] = {}
    limited = "SELECT count(*) FROM svc_jobs WHERE state = 'running' AND limit_key <> '' AND limit_key = ?"
    of_queue = "SELECT count(*) FROM svc_jobs WHERE state = 'running' AND queue = ?"
    keys = [(lane.limit_key, limited, lane.limit_key) for lane in lanes if lane.limit_key]
    keys += [(queue_key(info.name), of_queue, info.name) for info in configured.values()]
    for key, count, value in keys:
        running[key] = database.execute(count, (value,)).fetchone()[0]
        for row in database.execute("SELECT due FROM svc_job_limits WHERE key = ?", (key,)):
            due[key] = row[0]
    return Gate(micros(now), configured, running, due)


def _row(job: NewJob, now: datetime, due: datetime) -> tuple[Any, ...]:
    limit = job.limit
    return (
        job.id,
        job.name,
        job.queue,
        SCHEDULED if due > now else JobState.READY.value,
        job.priority,
        job.max_attempts,
        job.backoff_seconds,
        job.timeout_seconds,
        job.payload,
        job.context,
        None if job.unique is None else job.unique.key,
        _text(now),
        _text(due),
        job.tenant,
        FORMAT_VERSION,
        *(
            ("", None, None, None)
            if limit is None
            else (limit.key, limit.concurrency, limit.rate, limit.period_seconds)
        ),
        rank_of(due, job.priority),
    )


def _text(moment: datetime) -> str:
    """As SQLAlchemy stores a time in SQLite."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _with_times(row: tuple[Any, ...]) -> list[Any]:
    values = list(row)
    for at in _TIMES:
        if values[at] is not None:
            values[at] = datetime.fromisoformat(values[at]).replace(tzinfo=UTC)
    return values
