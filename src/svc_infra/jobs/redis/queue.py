"""The queue in Redis or Valkey."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec

from svc_infra.db import Outbox, OutboxMessage
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError
from svc_infra.jobs.backends.checked import CheckedQueue
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    Job,
    JobState,
    NewJob,
    check_name,
)
from svc_infra.jobs.queue import Beat, JobQueue, QueueInfo, QueueStats
from svc_infra.jobs.redis.claims import Claims
from svc_infra.jobs.redis.gather import Gatherer
from svc_infra.jobs.redis.hashes import duration, read_job, to_store
from svc_infra.jobs.redis.scripts import Scripts
from svc_infra.redis import connect, translating
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from sqlalchemy.ext.asyncio import AsyncSession

OUTBOX_TOPIC = "jobs"
LIST_LIMIT_LOOKED = 10_000
"""How many jobs of each state `list` looks through for those that are asked for."""
RETRY_LIMIT_LOOKED = 100_000
"""How many dead jobs `retry_many` looks through."""

_pack = msgspec.msgpack.Encoder().encode


class RedisJobQueue(CheckedQueue):
    """Keeps jobs in Redis (6.2 or newer) or Valkey; every step is one Lua script, so none is ever half done.

    What can be lost is what the server forgets. Without persistence a restart loses everything; with
    `appendfsync everysec` a crash of its machine loses about the last second, with `always` nothing that was
    answered. A failover loses what the new primary had not received, as replication is asynchronous: jobs that were
    stored just before are gone, acknowledged ones run again, unique keys can be taken twice. `maxmemory-policy` must
    be `noeviction`: any other deletes jobs, which `reserve` can only report (`jobs.lost`). What may not be lost
    belongs in `SqlJobQueue`.

    With an outbox, `enqueue(session=)` writes the job in the caller's unit of work; `relay` stores it here after the
    commit, once. The message, payload included, is at most 1 MiB; the id given back is not the kept one if another
    job takes the unique key before the relay comes.

    Args:
        client: A client that answers in bytes (`svc_infra.redis.connect`), or a URL, whose client `close` closes.
        prefix: The keys begin with `{prefix}:`; the braces put them into one slot of a cluster.
        outbox: Where `enqueue(session=)` writes; an `OutboxRelay` must have `relay` for the topic "jobs".
        clock: Where the time comes from; by default the server's clock, which all workers share.
        max_finished: Succeeded and cancelled jobs kept, unique keys included; the oldest go first. Dead ones all stay.
        max_attempts, backoff_seconds: For jobs that are enqueued without their own.
        max_crashes: A job that has crashed so often goes to the dead letter.

    Raises:
        ConfigurationError: The URL cannot be understood, or the client does not answer in bytes.
        MissingExtraError: redis is not installed.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | str,
        *,
        prefix: str = "jobs",
        outbox: Outbox | None = None,
        clock: Clock | None = None,
        max_finished: int = 10_000,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        backoff_seconds: float = DEFAULT_BACKOFF_SECONDS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds, max_crashes=max_crashes)
        self._url = client if isinstance(client, str) else None
        self._client: Any = connect(client) if isinstance(client, str) else client
        if self._client.get_encoder().decode_responses:
            raise ConfigurationError("RedisJobQueue needs a client that answers in bytes: leave decode_responses off.")
        self._name = check_name("prefix", prefix)
        self._prefix = "{" + prefix + "}"
        self._outbox = outbox
        self._clock = clock
        self._max_finished = max_finished
        self._inserts = Gatherer(self._insert)
        self._acks = Gatherer(self._acknowledge)
        self._scripts = Scripts(self._client, self._prefix, clock)
        self._run = self._scripts.run
        self._claims = Claims(self._scripts, self._max_crashes, max_finished)

    async def close(self) -> None:
        """Hand back what nobody took, and close the connections, unless they are the caller's."""
        for job in await self._claims.close():
            await self._release(job, 0.0)
        await self._scripts.close()
        if self._url is not None:
            await self._client.aclose()

    @property
    def stores_in_sessions(self) -> bool:
        """Whether it has an outbox, with which it can store jobs in a database's sessions."""
        return self._outbox is not None

    async def relay(self, message: OutboxMessage) -> None:
        """Store a job that was enqueued in a unit of work; the handler of the outbox topic "jobs"."""
        job = msgspec.convert(message.payload, NewJob)
        age = (SystemClock().now() - message.created_at).total_seconds()
        # The message may come twice: then the id is there already.
        await self._inserts([replace(job, delay_seconds=max(0.0, job.delay_seconds - age), chosen_id=True)])

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """See `JobQueue.heart`. There is one for a queue that was made from a URL."""
        return None if self._url is None else self._apart(self._url)

    @asynccontextmanager
    async def _apart(self, url: str) -> AsyncIterator[JobQueue]:
        apart = RedisJobQueue(url, prefix=self._name, clock=self._clock)
        try:
            yield apart
        finally:
            await apart.close()

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`; what it is woken for it has claimed."""
        await self._claims.wait(timeout_seconds)

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        with translating():
            fields = await self._client.hgetall(f"{self._prefix}:job:{job_id}")
        return read_job(job_id, [part for field in fields.items() for part in field]) if fields else None

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        _check_was(await self._run("retry", job_id), job_id, JobState.DEAD, JobState.CANCELLED)

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        _check_was(await self._run("cancel", job_id, self._max_finished), job_id, JobState.READY, JobState.RUNNING)

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        with translating():
            async with self._client.pipeline(transaction=False) as pipe:
                for state in JobState:
                    pipe.zcard(f"{self._prefix}:{state}")
                pipe.get(f"{self._prefix}:forgotten")
                *counts, forgotten = await pipe.execute()
        age = max((queue.oldest_due_age_seconds for queue in await self.queues()), default=0.0)
        return QueueStats(dict(zip(JobState, counts, strict=True)), age, int(forgotten or 0))

    async def queues(self) -> builtins.list[QueueInfo]:
        """See `JobStore.queues`."""
        found = []
        for name, ready, running, age, paused, configured in await self._run("queues"):
            known = msgspec.json.decode(configured) if configured else {}
            if period := known.pop("period", None):
                known["period_seconds"] = period / 1e6
            info = QueueInfo(name=name.decode(), ready=ready, running=running, paused=bool(paused), **known)
            found.append(replace(info, oldest_due_age_seconds=age / 1e6))
        return sorted(found, key=lambda info: info.name)

    async def _list(
        self, state: JobState | None, equal: Mapping[str, str], before: str | None, limit: int
    ) -> builtins.list[Job]:
        states = [state] if state is not None else list(JobState)
        wanted = (part for field in equal.items() for part in field)
        found = await self._run("list", limit, LIST_LIMIT_LOOKED, before or "", len(states), *states, *wanted)
        jobs = [read_job(job_id.decode(), fields) for job_id, fields in found if fields]
        return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)[:limit]

    async def _retry_many(self, equal: Mapping[str, str], limit: int, spacing_seconds: float) -> int:
        wanted = (part for field in equal.items() for part in field)
        return int(await self._run("retry_many", limit, RETRY_LIMIT_LOOKED, duration(spacing_seconds), *wanted))

    async def _edit(self, job_id: str, payload: str) -> None:
        _check_was(await self._run("edit", job_id, payload), job_id, JobState.READY, JobState.DEAD)

    async def _purge(self, older_than_seconds: float, limit: int, dead: bool) -> int:
        return int(await self._run("purge", duration(older_than_seconds), limit, "buried" if dead else "finished"))

    async def _pause(self, queue: str, paused: bool) -> None:
        await self._run("configure", queue, "pause" if paused else "resume")

    async def _configure(self, queue: QueueInfo) -> None:
        known: dict[str, Any] = {"concurrency": queue.concurrency, "rate": queue.rate, "weights": queue.weights}
        kept = {name: value for name, value in known.items() if value}
        if kept:
            kept["period"] = duration(queue.period_seconds)
        await self._run("configure", queue.name, msgspec.json.encode(kept) if kept else "")

    async def _store(self, jobs: Sequence[NewJob], session: AsyncSession | None) -> builtins.list[str]:
        if session is None:
            return list(await self._inserts(jobs))
        if self._outbox is None:
            raise ConfigurationError(
                "This queue is not in the session's database: give RedisJobQueue an outbox, and its relay the "
                f'handler of the topic "{OUTBOX_TOPIC}", or use SqlJobQueue.'
            )
        kept = []
        for job in jobs:
            holder = await self._holder(job)
            if holder is None:
                message_id = outbox_id(job.id) if job.chosen_id else None
                content = msgspec.to_builtins(job)
                await self._outbox.add(session, OUTBOX_TOPIC, content, key=_order(job), message_id=message_id)
            kept.append(job.id if holder is None else holder)
        return kept

    async def _holder(self, job: NewJob) -> str | None:
        """The job that is kept instead, whatever becomes of the unit of work."""
        if (unique := job.unique) is None or unique.on_conflict != "skip":
            return None
        window = 0 if unique.window_seconds is None else duration(unique.window_seconds)
        holder = await self._run("holder", unique.key, window, *unique.states)
        return None if holder is None else str(holder.decode())

    async def _insert(self, jobs: Sequence[NewJob]) -> builtins.list[str]:
        ids = [job.id for job in jobs]
        others = await self._run("enqueue", _pack([to_store(job) for job in jobs]))
        for place, kept in zip(others[::2], others[1::2], strict=True):
            ids[place - 1] = kept.decode()
        return ids

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        return await self._claims.claim(worker_id, queues, limit, lease_seconds)

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        attempts = (part for job in jobs for part in (job.id, job.token or ""))
        held, cancelled = await self._run("heartbeat", duration(lease_seconds), *attempts)
        return Beat(frozenset(one.decode() for one in held), frozenset(one.decode() for one in cancelled))

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        _refuse_session(session)
        return bool(await self._succeed_many([(job, result)]))

    async def _succeed_many(self, results: Sequence[tuple[Job, str | None]]) -> set[str]:
        answers = await self._acks(results)
        return {job.id for (job, _), answer in zip(results, answers, strict=True) if answer}

    async def _acknowledge(self, results: Sequence[tuple[Job, str | None]]) -> Sequence[int]:
        attempts = [
            (job.id, job.token or "") if result is None else (job.id, job.token or "", result)
            for job, result in results
        ]
        answers: Sequence[int] = await self._run("ack", self._max_finished, _pack(attempts))
        return answers

    async def _fail(
        self, job: Job, error: str, fingerprint: str, delay_seconds: float, end: JobState | None, crashed: bool
    ) -> JobState | None:
        attempt = (job.id, job.token or "", self._max_finished, duration(delay_seconds))
        state = await self._run("fail", *attempt, end or "", error, fingerprint, int(crashed))
        return None if state is None else JobState(state.decode())

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        attempt = (job.id, job.token or "", self._max_finished)
        return bool(await self._run("release", *attempt, duration(delay_seconds)))

    async def _progress(self, job: Job, done: int, total: int, session: AsyncSession | None) -> bool:
        _refuse_session(session)
        return bool(await self._run("progress", job.id, job.token or "", done, total))


def outbox_id(job_id: str) -> UUID:
    """The id of the message that brings a job here whose id was chosen by whoever stored it."""
    return uuid5(NAMESPACE_OID, f"svc-infra job {job_id}")


def _order(job: NewJob) -> str | None:
    """What the relay keeps in order: of jobs that replace each other the last one that was stored is to stay."""
    return None if job.unique is None or job.unique.on_conflict == "skip" else job.unique.key


def _refuse_session(session: AsyncSession | None) -> None:
    if session is not None:
        raise ConfigurationError("A queue in Redis cannot finish a job in a transaction: use SqlJobQueue.")


def _check_was(state: bytes | None, job_id: str, *states: JobState) -> None:
    if state is None:
        raise NotFoundError("Job", job_id)
    if JobState(state.decode()) not in states:
        raise ConflictError(f"The job is {state.decode()}.")
