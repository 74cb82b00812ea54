"""The queue in the application's own database."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import sqlalchemy as sa

from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs.backends.checked import CheckedQueue
from svc_infra.jobs.backends.turns import Lane, micros, rank_of
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    Job,
    JobState,
    NewJob,
    Unique,
)
from svc_infra.jobs.queue import Beat, JobQueue, QueueInfo, QueueStats
from svc_infra.jobs.sql.models import JOB_COLUMNS, SCHEDULED, info_of, job_of, state_of, svc_job_queues, svc_jobs
from svc_infra.jobs.sql.postgres import PostgresJobs
from svc_infra.jobs.sql.sqlite import SqliteJobs
from svc_infra.jobs.sql.statements import LIMITS_KEPT_SECONDS, JobStatements
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


HOLDERS_AT_ONCE = 1000
"""Of how many unique keys one statement looks up who holds them."""

_c = svc_jobs.c


class SqlJobQueue(CheckedQueue):
    """Keeps jobs in SQLite (3.35 or newer) or PostgreSQL (13 or newer): only with the database is a committed job lost.

    `enqueue(session=)`, `ack(session=)` and `progress(session=)` write in the caller's unit of work, which must be of
    the same database. On PostgreSQL workers of all processes start a job as soon as its transaction has committed. On
    SQLite those of this process do, the others find it when their `wait` ends; and as everybody waits for its one
    writer, a transaction that lasts as long as a lease makes the workers of other processes look dead.

    Args:
        db: The database; `migrate.upgrade` has made its tables.
        clock: Where the time comes from; by default the PostgreSQL server's clock, which all workers share, or this
            machine's for SQLite.
        max_attempts, backoff_seconds: For jobs that are enqueued without their own.
        max_crashes: A job that has crashed so often goes to the dead letter.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        *,
        clock: Clock | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds, max_crashes=max_crashes)
        self._db = db
        self._clock = clock
        self._postgresql = db.dialect == "postgresql"
        self._sql = JobStatements(postgresql=self._postgresql)
        self._jobs: PostgresJobs | SqliteJobs
        if self._postgresql:
            self._jobs = PostgresJobs(db, clock=clock, max_crashes=max_crashes)
        else:
            self._jobs = SqliteJobs(db, clock=clock or SystemClock(), max_crashes=max_crashes)

    @property
    def db(self) -> AsyncDatabase:
        """The database that it keeps jobs in, in whose sessions it can store them."""
        return self._db

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`."""
        await self._jobs.wait(timeout_seconds)

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """See `JobQueue.heart`. A SQLite database in memory has one connection only."""
        return None if self._db.url.database in (None, "", ":memory:") else self._apart()

    @asynccontextmanager
    async def _apart(self) -> AsyncIterator[JobQueue]:
        database = AsyncDatabase(self._db.url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)
        try:
            yield SqlJobQueue(database, clock=self._clock)
        finally:
            await database.dispose()

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        rows = await self._read(sa.select(*(_c[name] for name in JOB_COLUMNS)).where(_c.id == job_id))
        return job_of(rows[0]) if rows else None

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        rows = await self._run(self._sql.retry, None, job_id=job_id, delayed=False, due=timedelta(0))
        if not rows:
            await self._refuse(job_id)
        self._jobs.came(Lane(*rows[0][:3]), rows[0].rank)
        await self._jobs.tell()

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        if not await self._run(self._sql.cancel, None, job_id=job_id):
            await self._refuse(job_id)

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        counts = dict.fromkeys(JobState, 0)
        age = 0.0
        for row in await self._read(self._sql.stats):
            state = state_of(row.state)
            counts[state] += row.jobs
            if state is JobState.READY:
                age = max(age, (row.now - row.oldest).total_seconds())
        return QueueStats(counts, age)

    async def queues(self) -> builtins.list[QueueInfo]:
        """See `JobStore.queues`."""
        infos = {row.name: info_of(row._mapping) for row in await self._read(sa.select(svc_job_queues))}
        infos = {name: info for name, info in infos.items() if info != QueueInfo(name=name)}
        for row in await self._read(self._sql.queues):
            info = infos.get(row.queue) or QueueInfo(name=row.queue)
            if row.state == JobState.RUNNING:
                infos[row.queue] = replace(info, running=row.jobs)
            else:
                age = max(info.oldest_due_age_seconds, (row.now - row.oldest).total_seconds())
                infos[row.queue] = replace(info, ready=info.ready + row.jobs, oldest_due_age_seconds=age)
        return [infos[name] for name in sorted(infos)]

    async def _list(
        self, state: JobState | None, equal: Mapping[str, str], before: str | None, limit: int
    ) -> builtins.list[Job]:
        return [job_of(row) for row in await self._read(self._sql.list(state, equal, before, limit))]

    async def _retry_many(self, equal: Mapping[str, str], limit: int, spacing_seconds: float) -> int:
        async with self._db.session() as session:
            ids = (await session.scalars(self._sql.dead(equal, limit))).all()
            rows = []
            for number, job_id in enumerate(ids):
                due = timedelta(seconds=number * spacing_seconds)
                again = {"job_id": job_id, "delayed": due > timedelta(0), "due": due}
                rows.append(self._sql.parameters(again, self._jobs.now))
            if rows:
                await (await session.connection()).execute(self._sql.retry_each, rows)
        await self._jobs.tell()
        return len(ids)

    async def _edit(self, job_id: str, payload: str) -> None:
        if not await self._run(self._sql.edit, None, job_id=job_id, text=payload):
            await self._refuse(job_id)

    async def _purge(self, older_than_seconds: float, limit: int, dead: bool) -> int:
        before = timedelta(seconds=-older_than_seconds)
        purged = await self._run(self._sql.purge(dead=dead), None, before=before, take=limit)
        async with self._db.session() as session:
            unused = micros(SystemClock().now()) - round(LIMITS_KEPT_SECONDS * 1e6)
            await session.execute(self._sql.forget_limits, {"before": unused, "take": limit})
        return len(purged)

    async def _pause(self, queue: str, paused: bool) -> None:
        await self._keep(name=queue, paused=paused)

    async def _configure(self, queue: QueueInfo) -> None:
        numbers = {"concurrency": queue.concurrency, "rate": queue.rate, "period_seconds": queue.period_seconds}
        await self._keep(name=queue.name, **numbers, weights=orjson.dumps(dict(queue.weights)).decode())

    async def _keep(self, **facts: Any) -> None:
        async with self._db.session() as session:
            await session.execute(self._sql.configure(facts))
        await self._jobs.tell()

    async def _store(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> builtins.list[str]:
        unique = [job for job in jobs if job.unique is not None]
        if session is not None:
            self._check_ours(session)
        elif unique and (len(jobs) > 1 or unique[0].unique != Unique(unique[0].unique.key)):  # type: ignore[union-attr]
            async with self._db.session() as own:
                return await self._store(jobs, own)
        kept = {job.id: job.id for job in jobs}
        if plain := [job for job in jobs if job.unique is None]:
            await self._insert(sorted(plain, key=lambda job: job.id), session)
        unique.sort(key=lambda job: job.unique.key)  # type: ignore[union-attr]  # in one order: no deadlock
        if len(unique) > 1:
            unique = await self._store_simple(unique, session, kept)
        for job in unique:
            kept[job.id] = await self._store_unique(job, job.unique, session)  # type: ignore[arg-type]
        return [kept[job.id] for job in jobs]

    async def _store_simple(
        self, jobs: Sequence[NewJob], session: AsyncSession | None, kept: dict[str, str]
    ) -> builtins.list[NewJob]:
        """Store those together whose key nothing but its being held decides about; the others."""
        others = {_key(job) for job in jobs if job.unique != Unique(_key(job))}
        simple = [job for job in jobs if _key(job) not in others]
        firsts: dict[str, NewJob] = {}
        for job in simple:
            firsts.setdefault(_key(job), job)
        stored = await self._insert([*firsts.values()], session) if firsts else 0
        left = [job for job in jobs if _key(job) in others]
        if stored == len(simple):
            return left
        for first in range(0, len(simple), HOLDERS_AT_ONCE):
            some = simple[first : first + HOLDERS_AT_ONCE]
            ids, keys = [job.id for job in some], [_key(job) for job in some]
            rows = await self._run(self._sql.holders, session, ids=ids, held_keys=keys)
            there, holders = {row.id for row in rows}, {row.unique_key: row.id for row in rows}
            kept |= {job.id: job.id if job.id in there else holders.get(_key(job), "") for job in some}
        return left + [job for job in simple if not kept[job.id]]  # whose holder has been purged meanwhile

    async def _store_unique(self, job: NewJob, unique: Unique, session: AsyncSession | None) -> str:
        if unique.window_seconds is not None or len(unique.states) < len(JobState):
            window = (
                timedelta(days=-36500) if unique.window_seconds is None else timedelta(seconds=-unique.window_seconds)
            )
            states = [*unique.states, *([SCHEDULED] if JobState.READY in unique.states else [])]
            facts = {"job_id": job.id, "held_key": unique.key, "before": window, "states": states}
            await self._run(self._sql.free_key, session, **facts)
        for _ in range(3):  # the job that holds the key may be purged between the two statements
            if await self._insert([job], session):
                return job.id
            rows = await self._run(self._sql.holder, session, job_id=job.id, held_key=unique.key)
            if rows and rows[0].id != job.id and unique.on_conflict != "skip":
                rows = await self._replace(job, unique, session) or rows
            if rows:
                return str(rows[0].id)
        raise ConflictError("The job that holds this unique key comes and goes: try again.")

    async def _insert(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> int:
        stored, committed = await self._jobs.insert(jobs, session)
        if session is None:
            committed()
        else:
            after_commit(session, committed)
        return stored

    async def _replace(self, job: NewJob, unique: Unique, session: AsyncSession | None) -> Sequence[Any]:
        rows = await self._run(self._sql.waiting_holder, session, held_key=unique.key)
        if not rows or session is None:
            return []
        due, now = rows[0].available_at, rows[0].now
        if unique.on_conflict == "debounce":
            due = max(now, job.at or now + timedelta(seconds=job.delay_seconds))
        values: dict[str, Any] = {
            name: getattr(job, name)
            for name in ("name", "queue", "priority", "max_attempts", "backoff_seconds", "timeout_seconds", "payload")
        }
        values |= {"context": job.context, "tenant": job.tenant, "available_at": due}
        values |= {"state": SCHEDULED if due > now else JobState.READY.value, "rank": rank_of(due, job.priority)}
        limit = job.limit
        values["limit_key"] = "" if limit is None else limit.key
        for name in ("concurrency", "rate", "period_seconds"):
            values[f"limit_{name}"] = None if limit is None else getattr(limit, name)
        values |= dict.fromkeys(("attempts", "crashes", "progress_done", "progress_total"), 0)
        values |= dict.fromkeys(("started_at", "worker_id", "last_error", "result"), None) | {"fingerprint": ""}
        parameters = {f"new_{name}": value for name, value in values.items()}
        await session.execute(self._sql.replace(values), {"job_id": rows[0].id, **parameters})

        def committed() -> None:
            if due > now:
                self._jobs.comes(due - now)
            else:
                self._jobs.came(Lane(job.queue, job.tenant, values["limit_key"]), values["rank"])

        after_commit(session, committed)
        return rows

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        return await self._jobs.claim(worker_id, queues, limit, lease_seconds)

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        if isinstance(self._jobs, SqliteJobs):
            return await self._jobs.renew(jobs, lease_seconds)
        attempts = {"ids": [job.id for job in jobs], "tokens": [job.token for job in jobs]}
        rows = await self._run(self._sql.renew, None, **attempts, end=timedelta(seconds=lease_seconds))
        return Beat(frozenset(row.id for row in rows), frozenset(row.id for row in rows if row.cancel_requested))

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        if session is None:
            return job.id in await self._succeed_many([(job, result)])
        self._check_ours(session)
        after_commit(session, lambda: self._jobs.freed([job]))
        return bool(await self._run(self._sql.succeed, session, **_attempt(job), outcome=result))

    async def _succeed_many(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        done = await self._jobs.succeed(results)
        self._jobs.freed([job for job, _ in results])
        return done

    async def _fail(
        self, job: Job, error: str, fingerprint: str, delay_seconds: float, end: JobState | None, crashed: bool
    ) -> JobState | None:
        due = timedelta(seconds=delay_seconds)
        facts = {"error": error, "place": fingerprint, "end": end or "", "crashed": int(crashed)}
        rows = await self._run(self._sql.fail, None, **_attempt(job), **facts, delayed=delay_seconds > 0, due=due)
        self._back([job], due)
        return state_of(rows[0].state) if rows else None

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        due = timedelta(seconds=delay_seconds)
        rows = await self._run(self._sql.release, None, **_attempt(job), delayed=delay_seconds > 0, due=due)
        self._back([job], due)
        return bool(rows)

    async def _progress(self, job: Job, done: int, total: int, session: AsyncSession | None) -> bool:
        if session is not None:
            self._check_ours(session)
        return bool(await self._run(self._sql.progress, session, **_attempt(job), done=done, total=total))

    def _back(self, jobs: Sequence[Job], delay: timedelta) -> None:
        """These wait again, or have ended."""
        for job in jobs:
            if delay:
                self._jobs.comes(delay)
            else:
                self._jobs.came(
                    Lane(job.queue, job.tenant, job.limit_key or ""), rank_of(job.available_at, job.priority)
                )
        self._jobs.freed(jobs)

    async def _refuse(self, job_id: str) -> NoReturn:
        if (job := await self.get(job_id)) is None:
            raise NotFoundError("Job", job_id)
        raise ConflictError(f"The job is {job.state}.")

    def _check_ours(self, session: AsyncSession) -> None:
        if session.get_bind().engine.url != self._db.engine.url:
            raise ConfigurationError("This queue is not in the session's database: use a session of its own.")

    async def _run(self, statement: sa.Executable, session: AsyncSession | None, /, **values: Any) -> Sequence[Any]:
        """Execute in this unit of work, or in one of its own."""
        parameters = self._sql.parameters(values, self._jobs.now)
        if session is not None:
            return (await session.execute(statement, parameters)).all()
        async with self._db.session() as own:
            if self._postgresql:  # one statement is a transaction: spare it the round trips of BEGIN and COMMIT
                await own.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            return (await own.execute(statement, parameters)).all()

    async def _read(self, statement: sa.Executable) -> Sequence[Any]:
        async with self._db.session(read_only=True) as session:
            return (await session.execute(statement, self._sql.parameters({}, self._jobs.now))).all()


def _key(job: NewJob) -> str:
    return "" if job.unique is None else job.unique.key


def _attempt(job: Job) -> dict[str, str | None]:
    return {"job_id": job.id, "held_token": job.token}
