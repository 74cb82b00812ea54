"""The queue in Redis or Valkey."""

from __future__ import annotations

import asyncio
import builtins
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from svc_infra.db import Outbox, OutboxMessage
from svc_infra.errors import ConfigurationError, ConflictError, NotFoundError, UnavailableError
from svc_infra.jobs.backends.checked import LEASE_ENDED, SWEEP_LIMIT_JOBS, CheckedQueue
from svc_infra.jobs.job import (
    DEFAULT_BACKOFF_SECONDS,
    DEFAULT_MAX_ATTEMPTS,
    Job,
    JobState,
    NewJob,
    check_name,
    read_object,
    read_result,
)
from svc_infra.jobs.queue import Beat, JobQueue, QueueStats
from svc_infra.redis import connect, translating
from svc_infra.types import Clock, SystemClock

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from redis.commands.core import AsyncScript
    from sqlalchemy.ext.asyncio import AsyncSession

OUTBOX_TOPIC = "jobs"
LIST_LIMIT_LOOKED = 10_000
"""How many jobs of each state `list` looks through for those of one queue."""
BLOCK_SECONDS = 2.0
"""The longest that one blocking command of `wait` lasts; less than any sensible socket timeout."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = ("created_at", "available_at", "started_at", "finished_at", "lease_expires_at")
_TEXTS = ("name", "queue", "token", "worker_id", "unique_key", "last_error")
_WHOLE = ("priority", "attempts", "max_attempts", "crashes", "progress_done", "progress_total")
_SECONDS = ("backoff_seconds", "timeout_seconds")

_log = logging.getLogger(__name__)


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
    ) -> None:
        super().__init__(max_attempts=max_attempts, backoff_seconds=backoff_seconds)
        self._owned = isinstance(client, str)
        self._url = client if isinstance(client, str) else None
        self._client: Any = connect(client) if isinstance(client, str) else client
        if _answers_in_text(self._client):
            raise ConfigurationError("RedisJobQueue needs a client that answers in bytes: leave decode_responses off.")
        self._prefix = "{" + check_name("prefix", prefix) + "}"
        self._outbox = outbox
        self._clock = clock
        self._max_finished = max_finished
        self._scripts: dict[str, AsyncScript] = {}
        self._served: Sequence[str] = ("default",)  # what this process last reserved from

    async def close(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._owned:
            await self._client.aclose()

    async def relay(self, message: OutboxMessage) -> None:
        """Store a job that was enqueued in a unit of work; the handler of the outbox topic "jobs"."""
        job = NewJob(**message.payload)
        age = (SystemClock().now() - message.created_at).total_seconds()
        await self._insert(replace(job, delay_seconds=max(0.0, job.delay_seconds - age)))

    def heart(self) -> AbstractAsyncContextManager[JobQueue] | None:
        """See `JobQueue.heart`. There is one for a queue that was made from a URL."""
        return None if self._url is None else self._apart(self._url)

    @asynccontextmanager
    async def _apart(self, url: str) -> AsyncIterator[JobQueue]:
        apart = RedisJobQueue(url, prefix=self._prefix.strip("{}"), clock=self._clock)
        try:
            yield apart
        finally:
            await apart.close()

    async def wait(self, timeout_seconds: float) -> None:
        """See `JobQueue.wait`. One waiting worker of the served queues is woken for each job, in any process."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        keys = [f"{self._prefix}:wake:{name}" for name in self._served]
        woken = None
        while not woken and (left := end - loop.time()) > 0:
            block = max(0.01, min(left, BLOCK_SECONDS))
            try:
                async with asyncio.timeout(block + 1.0):
                    with translating():
                        woken = await self._client.blpop(keys, timeout=block)
            except (UnavailableError, TimeoutError) as error:  # the next `reserve` tells the worker
                _log.warning("jobs.wait_failed", exc_info=error)
                await asyncio.sleep(max(0.0, end - loop.time()))

    async def get(self, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        with translating():
            fields = await self._client.hgetall(f"{self._prefix}:job:{job_id}")
        return _job(job_id, fields) if fields else None

    async def list(
        self, *, state: JobState | None = None, queue: str | None = None, limit: int = 100
    ) -> builtins.list[Job]:
        """See `JobStore.list`. With `queue`, only the newest 10,000 jobs of each state are looked through."""
        states = [state] if state is not None else list(JobState)
        found = await self._run("list", limit, LIST_LIMIT_LOOKED, queue or "", *states)
        jobs = [_job(job_id.decode(), _pairs(fields)) for job_id, fields in found if fields]
        return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)[:limit]

    async def retry(self, job_id: str) -> None:
        """See `JobStore.retry`."""
        _check_was(await self._run("retry", job_id), job_id, JobState.DEAD, JobState.CANCELLED)

    async def cancel(self, job_id: str) -> None:
        """See `JobStore.cancel`."""
        _check_was(await self._run("cancel", job_id, self._max_finished), job_id, JobState.READY)

    async def purge(self, *, older_than_seconds: float, limit: int = 1000) -> int:
        """See `JobStore.purge`."""
        return int(await self._run("purge", _micros(older_than_seconds), limit))

    async def stats(self) -> QueueStats:
        """See `JobStore.stats`."""
        age, counts = await self._run("stats", *JobState)
        return QueueStats(dict(zip(JobState, counts, strict=True)), int(age) / 1e6)

    async def _store(self, job: NewJob, session: AsyncSession | None) -> str:
        if session is None:
            return await self._insert(job)
        if self._outbox is None:
            raise ConfigurationError(
                "This queue is not in the session's database: give RedisJobQueue an outbox, and its relay the "
                f'handler of the topic "{OUTBOX_TOPIC}", or use SqlJobQueue.'
            )
        if job.unique_key is not None:
            with translating():
                holder = await self._client.get(f"{self._prefix}:unique:{job.unique_key}")
            if holder is not None:
                return str(holder.decode())
        await self._outbox.add(session, OUTBOX_TOPIC, asdict(job))
        return job.id

    async def _insert(self, job: NewJob) -> str:
        fields = {"name": job.name, "payload": job.payload, "context": job.context}
        fields |= {"max_attempts": str(job.max_attempts), "backoff_seconds": repr(job.backoff_seconds)}
        if job.timeout_seconds is not None:
            fields["timeout_seconds"] = repr(job.timeout_seconds)
        place = (job.queue, job.priority, _micros(job.delay_seconds), job.unique_key or "")
        kept = await self._run("enqueue", job.id, *place, *(part for field in fields.items() for part in field))
        return str(kept.decode())

    async def _claim(
        self, worker_id: str, queues: builtins.list[str], limit: int, lease_seconds: float
    ) -> builtins.list[Job]:
        self._served = queues
        terms = (worker_id, limit, _micros(lease_seconds), secrets.token_hex(16))
        claimed, lost = await self._run("reserve", *terms, SWEEP_LIMIT_JOBS, LEASE_ENDED, *queues)
        for job_id in lost:
            _log.error("jobs.lost", extra={"job_id": job_id.decode(), "reason": "its hash is gone from Redis"})
        return [_job(job_id.decode(), _pairs(fields)) for job_id, fields in claimed]

    async def _renew(self, jobs: Sequence[Job], lease_seconds: float) -> Beat:
        attempts = (part for job in jobs for part in (job.id, job.token or ""))
        held = await self._run("heartbeat", _micros(lease_seconds), *attempts)
        return Beat(frozenset(job_id.decode() for job_id in held))

    async def _succeed(self, job: Job, result: str | None, session: AsyncSession | None) -> bool:
        if session is not None:
            raise ConfigurationError("A queue in Redis cannot finish a job in a transaction: use SqlJobQueue.")
        outcome = () if result is None else (result,)
        return bool(await self._run("ack", job.id, job.token or "", self._max_finished, *outcome))

    async def _fail(self, job: Job, error: str, delay_seconds: float, dead: bool) -> JobState | None:
        state = await self._run("fail", job.id, job.token or "", _micros(delay_seconds), int(dead), error)
        return None if state is None else JobState(state.decode())

    async def _release(self, job: Job, delay_seconds: float) -> bool:
        return bool(await self._run("release", job.id, job.token or "", _micros(delay_seconds)))

    async def _progress(self, job: Job, done: int, total: int) -> bool:
        return bool(await self._run("progress", job.id, job.token or "", done, total))

    async def _run(self, name: str, *arguments: str | int) -> Any:
        """Run one script: by its hash, and again with its text when the server does not know it."""
        if name not in self._scripts:
            folder = files("svc_infra.jobs.backends") / "lua"
            text = "\n".join((folder / f"{part}.lua").read_text() for part in ("prelude", name))
            self._scripts[name] = self._client.register_script(text)
        now = "" if self._clock is None else (self._clock.now() - _EPOCH) // timedelta(microseconds=1)
        with translating():
            return await self._scripts[name](keys=[self._prefix], args=[now, *arguments])


def _answers_in_text(client: Any) -> bool:
    return bool(client.get_encoder().decode_responses)


def _check_was(state: bytes | None, job_id: str, *states: JobState) -> None:
    if state is None:
        raise NotFoundError("Job", job_id)
    if JobState(state.decode()) not in states:
        raise ConflictError(f"The job is {state.decode()}.")


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _job(job_id: str, fields: Mapping[bytes, bytes]) -> Job:
    stored = {name.decode(): value for name, value in fields.items()}
    values: dict[str, Any] = {name: stored[name].decode(errors="replace") for name in _TEXTS if name in stored}
    values |= {name: int(stored[name]) for name in _WHOLE if name in stored}
    values |= {name: float(stored[name]) for name in _SECONDS if name in stored}
    values |= {name: _EPOCH + timedelta(microseconds=int(stored[name])) for name in _TIMES if name in stored}
    return Job(
        id=job_id,
        state=JobState(stored["state"].decode()),
        payload=read_object(stored.get("payload", b"")),
        context=read_object(stored.get("context", b"")),
        result=read_result(stored.get("result")),
        **values,
    )
