"""The queue in the application's own database."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa

from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs.backends.checked import CheckedQueue
from svc_infra.jobs.backends.models import SCHEDULED, svc_jobs
from svc_infra.jobs.backends.statements import JobStatements, in_state, waiting
from svc_infra.jobs.backends.wakeup import Wakeup
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    Job,
    JobState,
    NewJob,
    read_object,
    read_result,
)
from svc_infra.jobs.queue import Beat, JobQueue, QueueStats
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


_c = svc_jobs.c


class SqlJobQueue(CheckedQueue):
    """Keeps jobs in SQLite (3.35 or newer) or PostgreSQL (13 or newer): only with the database is a committed job lost.

    `enqueue(session=)` and `ack(session=)` write in the caller's unit of work, which must be of the same database.
    Workers of this process start a job as soon as its transaction has committed; those of other processes find it
    when their `wait` ends. On SQLite, whose one writer everybody waits for, a transaction that lasts as long as a lease
    makes the workers of other processes look dead.

    Args:
        db: The database; `migrate.upgrade` has made its tables.
        clock: Where the time comes from; by default the PostgreSQL server's clock, which all workers share, or this
            machine's for SQLite.
        max_attempts, backoff_seconds: For jobs that are enqueued without their own.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        *,
        clock: Clock | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds)
        self._db = db
        self._clock = clock
        self._postgresql = db.dialect == "postgresql"
        self._sql = JobStatements(postgresql=self._postgresql)
        self._wakeup = Wakeup()
        self._beats: builtins.list[dict[str, Any]] = []  # heartbeats that wait for a connection

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        await self._wakeup.wait(timeout_seconds)

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """See `JobQueue.heart`. A SQLite database in memory has one connection only."""
        return None if self._db.url.database in (None, "", ":memory:") else self._apart()

    @asynccontextmanager
    async def _apart(self) -> AsyncIterator[JobQueue]:
        database = AsyncDatabase(self._db.url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)
        apart = SqlJobQueue(database, clock=self._clock)
        apart._beats = self._beats  # so that claims go on sending those that wait for SQLite's one writer
        try:
            yield apart
        finally:
            await database.dispose()

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        rows = await self._read(sa.select(svc_jobs).where(_c.id == job_id))
        return _job(rows[0]) if rows else None

    async def list(
        self, *, state: JobState | None = None, queue: str | None = None, limit: int = 100
    ) -> builtins.list[Job]:
        """See `JobStore.list`."""
        found = sa.select(svc_jobs).order_by(_c.created_at.desc(), _c.id.desc()).limit(limit)
        if state is not None:
            found = found.where(waiting() if state is JobState.READY else in_state(state))
        if queue is not None:
            found = found.where(_c.queue == queue)
        return [_job(row) for row in await self._read(found)]

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        if not await self._run(self._sql.retry, job_id=job_id):
            await self._refuse(job_id)
        self._wakeup.notify()

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        if not await self._run(self._sql.cancel, job_id=job_id):
            await self._refuse(job_id)

    async def purge(self, *, older_than_seconds: float, limit: int = 1000) -> int:
        """See `JobStore.purge`."""
        return len(await self._run(self._sql.purge, before=timedelta(seconds=-older_than_seconds), take=limit))

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        counts = dict.fromkeys(JobState, 0)
        age = 0.0
        for row in await self._read(self._sql.stats):
            state = _state(row.state)
            counts[state] += row.jobs
            if state is JobState.READY:
                age = max(age, (row.now - row.oldest).total_seconds())
        return QueueStats(counts, age)

    async def _store(self, job: NewJob, session: AsyncSession | None) -> str:
        values = {
            "id": job.id,
            "name": job.name,
            "queue": job.queue,
            "state": SCHEDULED if job.delay_seconds else JobState.READY.value,
            "priority": job.priority,
            "max_attempts": job.max_attempts,
            "backoff_seconds": job.backoff_seconds,
            "timeout_seconds": job.timeout_seconds,
            "payload": job.payload,
            "context": job.context,
            "unique_key": job.unique_key,
            "due": timedelta(seconds=job.delay_seconds),
        }
        for _ in range(3):  # the job that holds the key may be purged between the two statements
            if await self._run(self._sql.insert, session, **values):
                if session is not None:
                    after_commit(session, self._wakeup.notify)
                elif not job.delay_seconds:
                    self._wakeup.notify()
                return job.id
            if rows := await self._run(self._sql.holder, session, job_id=job.id, held_key=job.unique_key):
                return str(rows[0].id)
        raise ConflictError("The job that holds this unique key comes and goes: try again.")

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        names = {f"queue_{number}": name for number, name in enumerate(queues)}
        terms = {"take": limit, "claimant": worker_id, "end": timedelta(seconds=lease_seconds)}
        claim = self._sql.claim(len(queues))
        if self._postgresql:
            rows = await self._run(claim, **names, **terms)
        else:
            async with self._db.session() as session:
                await session.connection()  # the only writer is ours, perhaps after a wait longer than a lease
                for beat in tuple(self._beats):
                    await self._run(self._sql.renew, session, **beat)
                rows = await self._run(claim, session, **names, **terms)
        jobs = [_job(row) for row in rows if row.token is not None]
        return sorted(jobs, key=lambda job: (-job.priority, job.available_at, job.id))

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        beat: dict[str, Any] = {"ids": [job.id for job in jobs], "tokens": [job.token for job in jobs]}
        beat["end"] = timedelta(seconds=lease_seconds)
        self._beats.append(beat)
        try:
            rows = await self._run(self._sql.renew, **beat)
        finally:
            self._beats.remove(beat)
        return Beat(frozenset(row.id for row in rows))

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        return bool(await self._run(self._sql.succeed, session, **_attempt(job), outcome=result))

    async def _fail(self, job: Job, error: str, delay_seconds: float, dead: bool) -> JobState | None:
        delay = {"delayed": delay_seconds > 0, "due": timedelta(seconds=delay_seconds)}
        rows = await self._run(self._sql.fail, **_attempt(job), **delay, error=error, dead=dead)
        if not delay_seconds:
            self._wakeup.notify()
        return _state(rows[0].state) if rows else None

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        delay = {"delayed": delay_seconds > 0, "due": timedelta(seconds=delay_seconds)}
        rows = await self._run(self._sql.release, **_attempt(job), **delay)
        if not delay_seconds:
            self._wakeup.notify()
        return bool(rows)

    async def _progress(self, job: Job, done: int, total: int) -> bool:
        return bool(await self._run(self._sql.progress, **_attempt(job), done=done, total=total))

    async def _refuse(self, job_id: str) -> NoReturn:
        if (job := await self.get(job_id)) is None:
            raise NotFoundError("Job", job_id)
        raise ConflictError(f"The job is {job.state}.")

    async def _run(
        self, statement: sa.Executable, session: AsyncSession | None = None, /, **values: Any
    ) -> Sequence[Any]:
        """Execute in this unit of work, or in one of its own."""
        parameters = self._parameters(values)
        if session is not None:
            if session.get_bind().engine.url != self._db.engine.url:
                raise ConfigurationError("This queue is not in the session's database: use a session of its own.")
            return (await session.execute(statement, parameters)).all()
        async with self._db.session() as own:
            if self._postgresql:  # one statement is a transaction: spare it the round trips of BEGIN and COMMIT
                await own.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            return (await own.execute(statement, parameters)).all()

    async def _read(self, statement: sa.Executable) -> Sequence[Any]:
        async with self._db.session(read_only=True) as session:
            return (await session.execute(statement, self._parameters({}))).all()

    def _parameters(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the time; SQLite, which cannot add a duration to it, gets the sum."""
        if self._postgresql:
            return {**values, "now": None if self._clock is None else self._clock.now()}
        now = (self._clock or SystemClock()).now()
        times = {name: now + value for name, value in values.items() if isinstance(value, timedelta)}
        return {**values, **times, "now": now}


def _state(stored: str) -> JobState:
    return JobState.READY if stored == SCHEDULED else JobState(stored)


def _attempt(job: Job) -> dict[str, str | None]:
    return {"job_id": job.id, "held_token": job.token}


def _job(row: Any) -> Job:
    values = row._asdict()
    values["state"] = _state(row.state)
    values["payload"], values["context"] = read_object(row.payload), read_object(row.context)
    values["result"] = read_result(row.result)
    return Job(**values)
