"""The steps that a queue takes most often, as PostgreSQL does them best: straight to the driver, many jobs at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from svc_infra.db import AsyncDatabase
from svc_infra.jobs.backends.checked import LEASE_ENDED, SWEEP_LIMIT_JOBS
from svc_infra.jobs.backends.turns import Gate, Head, Lane, Turns, in_lanes, queue_key
from svc_infra.jobs.job import AGEING_SECONDS, FORMAT_VERSION, SHARED_FIELDS, Job, NewJob
from svc_infra.jobs.queue import QueueInfo
from svc_infra.jobs.sql.connections import PostgresConnections
from svc_infra.jobs.sql.models import JOB_COLUMNS, info_of, job_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

CHANNEL = "svc_jobs"
"""Where processes tell each other of jobs that came: their own mark, queue, state, rank or time, limit key, tenant."""

_PRIORITY = f"{round(AGEING_SECONDS * 1e6)}::bigint"
"""What a point of priority takes from a rank."""
CLAIMS, ENDS = "claims", "ends"
"""What a process that listens keeps connections for."""

LANES_LIMIT = 1000
"""How many lanes one look finds; more are found by those after it."""
MANY_LANES = 20
"""Of more lanes under limits a claim locks only those whose jobs are likely to start, after a glimpse at all."""
GLIMPSE_LIMIT_JOBS = 10_000
"""About how many jobs such a glimpse reads."""
CLAIM_TRIES = 3
"""How often a claim begins anew when others have started what it saw in its glimpse."""

_shared = attrgetter(*SHARED_FIELDS)
_NOW = "coalesce($1::timestamptz, statement_timestamp())"
_JOB = ", ".join(f"j.{name}" for name in JOB_COLUMNS)
# A token is a digest of the job's id and of the claim's secret number: a random number for each would cost the server
# as much as to find the jobs.
_STARTED = f"""
UPDATE svc_jobs j SET state = 'running', attempts = j.attempts + 1, started_at = {_NOW},
    token = left(encode(sha256(convert_to($4::text || j.id, 'UTF8')), 'hex'), 32), worker_id = $2,
    lease_expires_at = {_NOW} + $3::interval
"""  # noqa: S608

# Jobs whose ids are new and which have all else but their payloads in common: nothing is computed for each of them.
_INSERT_ALIKE = f"""
WITH c AS MATERIALIZED (
    SELECT now, due, CASE WHEN due > now THEN 'scheduled' ELSE 'ready' END AS state,
        (extract(epoch FROM due) * 1000000)::bigint AS micros
    FROM (SELECT {_NOW} AS now, greatest({_NOW}, coalesce($11::timestamptz, {_NOW} + $10::interval)) AS due) t
), stored AS (
    INSERT INTO svc_jobs (id, payload, name, queue, state, priority, max_attempts, backoff_seconds, timeout_seconds,
        context, created_at, available_at, tenant, version, limit_key, limit_concurrency, limit_rate,
        limit_period_seconds, rank)
    SELECT n.id, n.payload, $4::text, $5::text, c.state, $6::smallint, $7::int, $8::float8, $9::float8,
        $12::text, c.now, c.due, $13::text, {FORMAT_VERSION}, $14::text, $15::int, $16::int,
        $17::float8, c.micros - {_PRIORITY} * $6::smallint
    FROM c, unnest($2::text[], $3::text[]) AS n(id, payload)
)
SELECT $5::text AS queue, $13::text AS tenant, $14::text AS limit_key, state,
    micros - {_PRIORITY} * $6::smallint AS rank, due - now AS wait, cardinality($2::text[]) AS jobs, micros AS due
FROM c
"""  # noqa: S608
# In the order of the arrays that `_arrays` makes.
_INSERT = f"""
WITH stored AS (
    INSERT INTO svc_jobs (id, name, queue, state, priority, max_attempts, backoff_seconds, timeout_seconds, payload,
        context, unique_key, created_at, available_at, tenant, version, limit_key, limit_concurrency, limit_rate,
        limit_period_seconds, rank)
    SELECT n.id, n.name, n.queue, CASE WHEN d.due > d.now THEN 'scheduled' ELSE 'ready' END, n.priority,
        n.max_attempts, n.backoff_seconds, n.timeout_seconds, n.payload, n.context, n.unique_key, d.now, d.due,
        n.tenant, {FORMAT_VERSION}, n.limit_key, n.limit_concurrency, n.limit_rate, n.limit_period_seconds,
        (extract(epoch FROM d.due) * 1000000)::bigint - n.priority * {_PRIORITY}
    FROM unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::int[], $7::float8[], $8::float8[], $9::text[],
        $10::text[], $11::text[], $12::float8[], $13::timestamptz[], $14::text[], $15::text[], $16::int[], $17::int[],
        $18::float8[])
        AS n(id, name, queue, priority, max_attempts, backoff_seconds, timeout_seconds, payload, context, unique_key,
            delay, at, tenant, limit_key, limit_concurrency, limit_rate, limit_period_seconds),
        LATERAL (SELECT {_NOW} AS now,
            greatest({_NOW}, coalesce(n.at, {_NOW} + n.delay * interval '1 second')) AS due) d
    ON CONFLICT DO NOTHING
    RETURNING queue, tenant, limit_key, state, rank, available_at, created_at
)
SELECT queue, tenant, limit_key, state, min(rank) AS rank, min(available_at - created_at) AS wait, count(*) AS jobs,
    (extract(epoch FROM min(available_at)) * 1000000)::bigint AS due
FROM stored GROUP BY queue, tenant, limit_key, state
"""  # noqa: S608

# It gives a transaction a number, so that it would wait for the disk; nothing is lost that the next look does not find.
_NOTIFY = f"""
SELECT pg_notify('{CHANNEL}', payload), set_config('synchronous_commit', 'off', true) FROM unnest($1::text[]) payload
"""  # noqa: S608

# Both scans begin some time back and not at the first entry of their index: what lies before is dead, but PostgreSQL
# may have to keep it for the sake of an old transaction.
_SWEEP = f"""
WITH ended AS (
    SELECT h.id FROM unnest($2::text[]) q(queue), LATERAL (
        SELECT id FROM svc_jobs WHERE state = 'running' AND queue = q.queue AND lease_expires_at <= {_NOW}
            AND lease_expires_at > {_NOW} - $3::interval
        ORDER BY lease_expires_at LIMIT {SWEEP_LIMIT_JOBS} FOR UPDATE SKIP LOCKED) h
), due AS (
    SELECT h.id FROM unnest($2::text[]) q(queue), LATERAL (
        SELECT id FROM svc_jobs WHERE state = 'scheduled' AND queue = q.queue AND available_at <= {_NOW}
            AND available_at > {_NOW} - $3::interval
        ORDER BY available_at LIMIT {SWEEP_LIMIT_JOBS} FOR UPDATE SKIP LOCKED) h
)
UPDATE svc_jobs SET
    state = CASE WHEN state = 'scheduled' THEN 'ready' WHEN cancel_requested THEN 'cancelled'
        WHEN crashes + 1 >= $4 THEN 'dead' ELSE 'ready' END,
    finished_at = CASE WHEN state = 'running' AND (cancel_requested OR crashes + 1 >= $4) THEN {_NOW} END,
    crashes = crashes + (state = 'running')::int,
    last_error = CASE WHEN state = 'running' THEN concat('{LEASE_ENDED.replace("'", "''")} Held by ', worker_id,
        ', started at ', started_at, ', lease until ', lease_expires_at, '.') ELSE last_error END,
    token = NULL, lease_expires_at = NULL
WHERE id = ANY(ARRAY(SELECT id FROM ended UNION ALL SELECT id FROM due))
RETURNING queue, tenant, limit_key, rank, state = 'ready' AS ready
"""  # noqa: S608

_NEXT = f"""
SELECT {_NOW} AS now, (SELECT min(h.available_at) FROM unnest($2::text[]) q(queue), LATERAL (
    SELECT available_at FROM svc_jobs WHERE state = 'scheduled' AND queue = q.queue AND available_at > {_NOW}
    ORDER BY available_at LIMIT 1) h)
    AS due
"""  # noqa: S608

# A loose index scan: from one lane straight to the next, however many jobs wait in each, and round by round of one lane
# of each queue.
_LANES = """
WITH RECURSIVE lane AS (
    (SELECT q.queue, h.* FROM unnest($1::text[], $2::text[], $3::text[]) q(queue, tenant, limit_key), LATERAL (
        SELECT tenant, limit_key, rank, id FROM svc_jobs
        WHERE state = 'ready' AND queue = q.queue AND (tenant, limit_key) >= (q.tenant, q.limit_key)
        ORDER BY tenant, limit_key, rank, id LIMIT 1) h)
    UNION ALL
    SELECT l.queue, h.* FROM lane l, LATERAL (
        SELECT tenant, limit_key, rank, id FROM svc_jobs
        WHERE state = 'ready' AND queue = l.queue AND (tenant, limit_key) > (l.tenant, l.limit_key)
        ORDER BY tenant, limit_key, rank, id LIMIT 1) h
)
SELECT queue, tenant, limit_key, rank, id FROM lane LIMIT $4
"""
_CONFIGURED = "SELECT name, paused, concurrency, rate, period_seconds, weights FROM svc_job_queues WHERE name = ANY($1)"

_FROM_LANES = """
    {lanes} l(queue, tenant, limit_key, floor, floor_id, take), LATERAL (
        SELECT id, rank, limit_concurrency, limit_rate, limit_period_seconds FROM svc_jobs
        WHERE state = 'ready' AND queue = l.queue AND tenant = l.tenant AND limit_key = l.limit_key
            AND (rank, id) >= (l.floor, l.floor_id)
        ORDER BY rank, id LIMIT l.take{lock}) h
"""
_LOCKED = " FOR UPDATE SKIP LOCKED"
_GIVEN = "unnest(${}::text[], ${}::text[], ${}::text[], ${}::bigint[], ${}::text[], ${}::int[])"
_UNLIMITED = f"""(
        SELECT g.* FROM {_GIVEN.format(5, 6, 7, 8, 9, 10)} g(queue, tenant, limit_key, floor, floor_id, take)
        WHERE g.limit_key = '' AND NOT EXISTS (SELECT FROM svc_job_queues c
            WHERE c.name = g.queue AND (c.paused OR c.concurrency IS NOT NULL OR c.rate IS NOT NULL))
        OFFSET 0)"""  # noqa: S608
# An array of ids keeps the planner on the primary key, however many rows it expects. A claim does not wait for the
# disk: a server that crashes then has at worst forgotten that an attempt began, and refuses what that one stores.
_CLAIM = f"""
WITH heads AS MATERIALIZED (
    SELECT h.id, l.take, row_number() OVER (PARTITION BY l.tenant ORDER BY h.rank, h.id) AS place
    FROM {_FROM_LANES.format(lanes=_UNLIMITED, lock=_LOCKED)}
), forgettable AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS commits)
{_STARTED} WHERE j.id = ANY(ARRAY(SELECT id FROM heads, forgettable WHERE place <= take)) RETURNING {_JOB}, j.rank
"""  # noqa: S608
_HEADS = f"""
SELECT l.queue, l.tenant, l.limit_key, h.id, h.rank, h.limit_concurrency, h.limit_rate, h.limit_period_seconds
FROM {_FROM_LANES.format(lanes=_GIVEN.format(1, 2, 3, 4, 5, 6), lock=_LOCKED)}
"""  # noqa: S608
_GLIMPSE = _HEADS.replace(_LOCKED, "")
_DUE = "SELECT key, due FROM svc_job_limits WHERE key = ANY($1::text[])"
_START = f"{_STARTED} WHERE j.id = ANY($5::text[]) RETURNING {_JOB}, j.rank"
_MICROS = f"SELECT (extract(epoch FROM {_NOW}) * 1000000)::bigint"  # noqa: S608
_KEYS = "INSERT INTO svc_job_limits (key, due) SELECT key, 0 FROM unnest($1::text[]) key ON CONFLICT DO NOTHING"
_LOCK = f"{_DUE} ORDER BY key FOR UPDATE"
_RUNNING = """
SELECT limit_key AS key, count(*) AS jobs FROM svc_jobs
WHERE state = 'running' AND limit_key <> '' AND limit_key = ANY($1::text[]) GROUP BY limit_key
UNION ALL
SELECT 'queue ' || queue, count(*) FROM svc_jobs WHERE state = 'running' AND queue = ANY($2::text[]) GROUP BY queue
"""
_SPEND = """
UPDATE svc_job_limits l SET due = n.due FROM unnest($1::text[], $2::bigint[]) n(key, due) WHERE l.key = n.key
"""
# Only jobs that run have a token. To ask for their state too would offer the planner their index, and with it the
# entries of all jobs that ran since the oldest open transaction began. The ids are also an array in a subquery: the
# planner would count them, and rather read a small table whole.
_ACK = f"""
UPDATE svc_jobs j SET state = 'succeeded', finished_at = {_NOW}, token = NULL, lease_expires_at = NULL,
    result = n.result
FROM unnest($2::text[], $3::text[], $4::text[]) n(id, token, result)
WHERE j.id = n.id AND j.token = n.token AND j.id = ANY(ARRAY(SELECT unnest($2::text[]))) RETURNING j.id
"""  # noqa: S608


class PostgresSteps:
    """Runs these steps, each in a transaction of its own unless it is given a unit of work.

    Args:
        db: The database.
    """

    def __init__(self, db: AsyncDatabase) -> None:
        self.connections = PostgresConnections(db)
        self._cursors: dict[str, tuple[str, str]] = {}  # by queue, where `lanes` goes on

    @property
    def more_lanes(self) -> bool:
        """Whether the last look found more than it could tell."""
        return bool(self._cursors)

    async def insert(self, jobs: Sequence[NewJob], now: datetime | None, session: AsyncSession | None) -> list[Any]:
        """Store jobs whose ids and unique keys are free; what was stored, as lanes."""
        if _are_alike(jobs):
            statement, values = _INSERT_ALIKE, _alike(jobs)
        else:
            statement, values = _INSERT, _arrays(jobs)
        if session is None:
            return await self.connections.fetch(statement, now, *values)
        return list(await (await session.connection()).exec_driver_sql(statement, (now, *values)))

    async def notify(self, payloads: Sequence[str]) -> None:
        """Tell every process that listens."""
        await self.connections.fetch(_NOTIFY, payloads)

    async def sweep(
        self, queues: Sequence[str], now: datetime | None, back: timedelta, max_crashes: int
    ) -> tuple[list[Any], Any]:
        """Put back what is due and whose lease ended; the lanes of those, the time, and when the next is due."""
        async with self.connections.by_index() as driver:
            moved = list(await driver.fetch(_SWEEP, now, queues, back, max_crashes))
            return moved, await driver.fetchrow(_NEXT, now, queues)

    async def lanes(self, queues: Sequence[str]) -> list[Any]:
        """The lanes in which jobs wait, and the place of each lane's first.

        When there are more than `LANES_LIMIT`, others each time, and as many of each queue as of the others.
        """
        starts = {queue: self._cursors.get(queue, ("", "")) for queue in queues}
        rows: list[Any] = []
        async with self.connections.by_index() as driver:
            while starts:
                tenants, limit_keys = ([start[place] for start in starts.values()] for place in (0, 1))
                found = await driver.fetch(_LANES, list(starts), tenants, limit_keys, LANES_LIMIT - len(rows))
                rows += found
                self._cursors = _cursors(found) if len(rows) == LANES_LIMIT else {}
                starts = {} if self._cursors else {queue: ("", "") for queue, start in starts.items() if any(start)}
        return rows

    async def configured(self, queues: Sequence[str]) -> dict[str, QueueInfo]:
        """The queues among these that are paused or configured."""
        return {row["name"]: info_of(row) for row in await self.connections.fetch(_CONFIGURED, queues)}

    async def claim(
        self, claimant: str, now: datetime | None, lease: timedelta, lanes: Sequence[tuple[Any, ...]]
    ) -> list[tuple[Job, int]]:
        """Start jobs of lanes without limits: so many of each tenant as its lanes' `take` says. With their ranks."""
        arrays = map(list, zip(*lanes, strict=True))
        rows = await self.connections.fetch_kept(CLAIMS, _CLAIM, now, claimant, lease, token_hex(16), *arrays)
        return [(job_of(row), row["rank"]) for row in rows]

    async def claim_limited(
        self,
        claimant: str,
        now: datetime | None,
        lease: timedelta,
        lanes: Sequence[tuple[Any, ...]],
        limit: int,
        turns: Turns,
        weights: Mapping[str, float],
    ) -> list[tuple[Job, int]]:
        """Start jobs as far as limits allow, which are locked from the look at them to the commit."""
        for _ in range(CLAIM_TRIES):
            likely, jobs = await self._claimed(claimant, now, lease, lanes, limit, turns, weights)
            if jobs or not likely:
                break
        return jobs

    async def _claimed(
        self,
        claimant: str,
        now: datetime | None,
        lease: timedelta,
        lanes: Sequence[tuple[Any, ...]],
        limit: int,
        turns: Turns,
        weights: Mapping[str, float],
    ) -> tuple[bool, list[tuple[Job, int]]]:
        """Whether jobs seemed free to start that others may have taken meanwhile, and those that were started."""
        queues, waiting = sorted({lane[0] for lane in lanes}), {lane[1] for lane in lanes}
        many = len(lanes) > MANY_LANES
        async with self.connections.by_index() as driver:
            configured = {row["name"]: info_of(row) for row in await driver.fetch(_CONFIGURED, queues)}
            if many:
                take = max(1, min(limit, GLIMPSE_LIMIT_JOBS // len(lanes)))
                gate, heads = await self._limits(driver, now, [(*one[:5], take) for one in lanes], configured)
                likely = Counter(head.lane for head in turns.pick(heads, limit, gate, weights)[0])
                lanes = [(*one[:5], likely[Lane(*one[:3])]) for one in lanes if Lane(*one[:3]) in likely]
                if not lanes:
                    return False, []
            gate, heads = await self._limits(driver, now, lanes, configured, lock=True)
            due = dict(gate.due)
            chosen, _ = turns.pick(heads, limit, gate, weights)
            turns.took(waiting, Counter(head.lane.tenant for head in chosen), weights)
            rows = await driver.fetch(_START, now, claimant, lease, token_hex(16), [head.id for head in chosen])
            spent = sorted(key for key, at in gate.due.items() if at != due.get(key))
            await driver.execute(_SPEND, spent, [gate.due[key] for key in spent])
        return many, [(job_of(row), row["rank"]) for row in rows]

    async def _limits(
        self,
        driver: Any,
        now: datetime | None,
        lanes: Sequence[tuple[Any, ...]],
        configured: Mapping[str, QueueInfo],
        *,
        lock: bool = False,
    ) -> tuple[Gate, list[list[Head]]]:
        """What limits say of these lanes, and their first jobs."""
        limited = [name for name, info in configured.items() if info.is_limited]
        keys = sorted({lane[2] for lane in lanes if lane[2]} | {queue_key(name) for name in limited})
        if lock:
            await driver.execute(_KEYS, keys)
        due = {row["key"]: row["due"] for row in await driver.fetch(_LOCK if lock else _DUE, keys)}
        moment = await driver.fetchval(_MICROS, now)
        running = {row["key"]: row["jobs"] for row in await driver.fetch(_RUNNING, keys, limited)}
        rows = await driver.fetch(_HEADS if lock else _GLIMPSE, *map(list, zip(*lanes, strict=True)))
        heads = (Head(row[4], row[3], Lane(*row[:3]), row[5], row[6], row[7] or 60.0) for row in rows)
        known = (head for head in heads if not lock or head.lane.limit_key in due or not head.lane.limit_key)
        return Gate(moment, configured, running, due), in_lanes(known)

    async def succeed(self, results: Sequence[tuple[Job, str | None]], now: datetime | None) -> set[str]:
        """Finish these jobs; the ids of those that were held."""
        ids, tokens = [job.id for job, _ in results], [job.token for job, _ in results]
        texts = [result for _, result in results]
        returned = None if texts.count(None) == len(texts) else texts  # makes a NULL for each, too
        return {row[0] for row in await self.connections.fetch_kept(ENDS, _ACK, now, ids, tokens, returned)}


def _cursors(rows: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Where a look that found too many lanes goes on: behind the last one of each queue."""
    # No limit key lies between this one and its successor: none holds what cannot be printed.
    return {row["queue"]: (row["tenant"], row["limit_key"] + "\x01") for row in rows}


def _are_alike(jobs: Sequence[NewJob]) -> bool:
    """Whether `_INSERT_ALIKE` can store them."""
    shared = _shared(jobs[0])
    return jobs[0].unique is None and not any(job.chosen_id or _shared(job) != shared for job in jobs)


def _alike(jobs: Sequence[NewJob]) -> list[Any]:
    job = jobs[0]
    options = (job.name, job.queue, job.priority, job.max_attempts, job.backoff_seconds, job.timeout_seconds)
    due = (timedelta(seconds=job.delay_seconds), job.at)
    ids, payloads = [one.id for one in jobs], [one.payload for one in jobs]
    return [ids, payloads, *options, *due, job.context, job.tenant, *_limit(job)]


def _arrays(jobs: Sequence[NewJob]) -> list[list[Any]]:
    rows = (
        (
            job.id,
            job.name,
            job.queue,
            job.priority,
            job.max_attempts,
            job.backoff_seconds,
            job.timeout_seconds,
            job.payload,
            job.context,
            None if job.unique is None else job.unique.key,
            job.delay_seconds,
            job.at,
            job.tenant,
            *_limit(job),
        )
        for job in jobs
    )
    return [list(column) for column in zip(*rows, strict=True)]


def _limit(job: NewJob) -> tuple[Any, ...]:
    limit = job.limit
    return ("", None, None, None) if limit is None else (limit.key, limit.concurrency, limit.rate, limit.period_seconds)
