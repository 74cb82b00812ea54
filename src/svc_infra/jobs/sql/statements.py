"""The statements of a queue in SQL that SQLite and PostgreSQL have in common."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too

from svc_infra.db.columns import UtcDateTime
from svc_infra.jobs.backends.turns import micros
from svc_infra.jobs.job import AGEING_SECONDS, JobState
from svc_infra.jobs.sql.models import JOB_COLUMNS, SCHEDULED, svc_job_limits, svc_job_queues, svc_jobs

LIMITS_KEPT_SECONDS = 86400.0
"""How long after the last start `purge` forgets a limit key."""

_c = svc_jobs.c
_LET_GO: dict[str, Any] = {"token": None, "lease_expires_at": None}
_PRIORITY: Any = sa.literal_column(str(round(AGEING_SECONDS * 1e6)), sa.BigInteger) * _c.priority


class JobStatements:
    """Every statement that is not a backend's own, built once; SQLAlchemy compiles each once and asyncpg prepares it.

    States are literals, because parameters would keep the planners from the partial indexes.
    """

    def __init__(self, *, postgresql: bool) -> None:
        self._postgresql = postgresql
        self._now: Any = sa.bindparam("now", type_=UtcDateTime)
        if postgresql:
            self._now = sa.type_coerce(sa.func.coalesce(self._now, sa.func.statement_timestamp()), UtcDateTime)
        self._by_id = _c.id == sa.bindparam("job_id")
        self._held = sa.update(svc_jobs).where(
            self._by_id, _c.token == sa.bindparam("held_token"), in_state(JobState.RUNNING)
        )
        self._delayed = sa.bindparam("delayed", type_=sa.Boolean)
        self._again = sa.case((self._delayed, _text(SCHEDULED)), else_=_text(JobState.READY))

    def parameters(self, values: Mapping[str, Any], now: datetime | None) -> dict[str, Any]:
        """With the time; SQLite, which cannot add a duration to it, gets the sum."""
        if self._postgresql or now is None:
            return {**values, "now": now}
        times = {name: now + value for name, value in values.items() if isinstance(value, timedelta)}
        due = {"due_micros": micros(times["due"])} if "due" in times else {}
        return {**values, **times, **due, "now": now}

    @cached_property
    def holder(self) -> sa.Executable:
        """The job that is kept instead of a new one."""
        key = sa.bindparam("held_key", type_=sa.String)
        return sa.select(_c.id).where(sa.or_(self._by_id, _c.unique_key == key)).order_by(self._by_id.desc()).limit(1)

    @cached_property
    def holders(self) -> sa.Executable:
        """The jobs that are kept instead of several new ones."""
        ids, keys = (sa.bindparam(name, expanding=True, type_=sa.String) for name in ("ids", "held_keys"))
        return sa.union_all(
            sa.select(_c.id, _c.unique_key).where(_c.id.in_(ids)),
            sa.select(_c.id, _c.unique_key).where(_c.unique_key.in_(keys)),
        )

    @cached_property
    def free_key(self) -> sa.Executable:
        """Take a unique key for a new job from one that is too old for it or not in these states any more."""
        old = _c.created_at <= sa.bindparam("before", type_=UtcDateTime)
        outside = _c.state.not_in(sa.bindparam("states", expanding=True, type_=sa.String))
        if self._postgresql:
            old = _c.created_at <= self._now + sa.bindparam("before", type_=sa.Interval)
        stored = svc_jobs.alias("stored")
        is_new = ~sa.exists().where(stored.c.id == sa.bindparam("job_id"))
        update = sa.update(svc_jobs).where(_c.unique_key == sa.bindparam("held_key"), sa.or_(old, outside), is_new)
        return update.values(unique_key=None).returning(_c.id)

    @cached_property
    def waiting_holder(self) -> sa.Executable:
        """The job that waits and has this unique key, locked."""
        found = sa.select(_c.id, _c.available_at, self._now.label("now")).where(
            _c.unique_key == sa.bindparam("held_key"), waiting()
        )
        return found.with_for_update() if self._postgresql else found

    def replace(self, values: Mapping[str, Any]) -> sa.Executable:
        """Give the job `job_id` other contents."""
        return sa.update(svc_jobs).where(self._by_id).values(**{name: sa.bindparam(f"new_{name}") for name in values})

    @cached_property
    def succeed(self) -> sa.Executable:
        """Finish one job."""
        done = {"state": _text(JobState.SUCCEEDED), "finished_at": self._now, "result": sa.bindparam("outcome")}
        return self._held.values(**_LET_GO, **done).returning(_c.id)

    @cached_property
    def fail(self) -> sa.Executable:
        """An attempt failed, or crashed; `end` is a terminal state or empty."""
        end: Any = sa.bindparam("end", type_=sa.String)
        crashes = _c.crashes + sa.bindparam("crashed", type_=sa.Integer)
        spent = _c.attempts - crashes >= _c.max_attempts
        ends = sa.or_(end != "", _c.cancel_requested, spent)
        return self._held.values(
            **_LET_GO,
            state=sa.case(
                (_c.cancel_requested, _text(JobState.CANCELLED)),
                (end != "", end),
                (spent, _text(JobState.DEAD)),
                else_=self._again,
            ),
            available_at=sa.case((ends, _c.available_at), else_=self._after("due")),
            rank=sa.case((ends, _c.rank), else_=self._rank_after_due()),
            finished_at=sa.case((ends, self._now)),
            crashes=crashes,
            last_error=sa.bindparam("error"),
            fingerprint=sa.bindparam("place"),
        ).returning(_c.state)

    @cached_property
    def release(self) -> sa.Executable:
        """Hand a job back unspent."""
        later = sa.and_(self._delayed, sa.not_(_c.cancel_requested))
        return self._held.values(
            **_LET_GO,
            state=sa.case((_c.cancel_requested, _text(JobState.CANCELLED)), else_=self._again),
            finished_at=sa.case((_c.cancel_requested, self._now)),
            attempts=_c.attempts - 1,
            available_at=sa.case((later, self._after("due")), else_=_c.available_at),
            rank=sa.case((later, self._rank_after_due()), else_=_c.rank),
        ).returning(_c.id)

    @cached_property
    def progress(self) -> sa.Executable:
        """How far an attempt is."""
        reported: dict[str, Any] = {"progress_done": sa.bindparam("done"), "progress_total": sa.bindparam("total")}
        return self._held.values(**reported).returning(_c.id)

    @cached_property
    def retry(self) -> sa.Executable:
        """Put back a job that has ended."""
        where = _c.queue, _c.tenant, _c.limit_key, _c.rank
        return self.retry_each.returning(*where)

    @cached_property
    def retry_each(self) -> sa.Update:
        """The same for one of many."""
        update = sa.update(svc_jobs).where(self._by_id, in_state(JobState.DEAD, JobState.CANCELLED))
        zeros = dict.fromkeys(("attempts", "crashes", "progress_done", "progress_total"), 0)
        again = {"state": self._again, "available_at": self._after("due"), "rank": self._rank_after_due()}
        return update.values(**zeros, **again, finished_at=None, cancel_requested=sa.false())

    def dead(self, equal: Mapping[str, str], limit: int) -> sa.Executable:
        """The ids of jobs that are dead, those first that have been so longest, locked."""
        found = sa.select(_c.id).where(in_state(JobState.DEAD), *(_c[name] == value for name, value in equal.items()))
        found = found.order_by(_c.finished_at, _c.id).limit(limit)
        return found.with_for_update(skip_locked=True) if self._postgresql else found

    @cached_property
    def edit(self) -> sa.Executable:
        """Change the payload of a job that does not run and did not succeed."""
        update = sa.update(svc_jobs).where(self._by_id, in_state(JobState.READY, SCHEDULED, JobState.DEAD))
        return update.values(payload=sa.bindparam("text")).returning(_c.id)

    @cached_property
    def cancel(self) -> sa.Executable:
        """Cancel a job that waits, and ask for it where it runs."""
        runs = in_state(JobState.RUNNING)
        update = sa.update(svc_jobs).where(self._by_id, in_state(JobState.READY, SCHEDULED, JobState.RUNNING))
        return update.values(
            state=sa.case((runs, _c.state), else_=_text(JobState.CANCELLED)),
            finished_at=sa.case((runs, _c.finished_at), else_=self._now),
            cancel_requested=runs,
        ).returning(_c.id)

    @cached_property
    def renew(self) -> sa.Executable:
        """Renew leases; the rows are the jobs that are held.

        A row that is locked is skipped and counted as held: an `ack` of its own attempt is in a transaction still
        open, and must not keep the other leases waiting.
        """
        ids, tokens = (sa.bindparam(name, expanding=True, type_=sa.String) for name in ("ids", "tokens"))
        held = sa.and_(_c.id.in_(ids), _c.token.in_(tokens))  # only jobs that run have a token
        update = sa.update(svc_jobs).values(lease_expires_at=self._after("end"))
        if not self._postgresql:
            return update.where(held).returning(_c.id, _c.cancel_requested)
        free = sa.select(_c.id).where(held).with_for_update(skip_locked=True).cte("free")
        renewed = update.where(self._among(free)).returning(_c.id).cte("renewed")
        return sa.select(_c.id, _c.cancel_requested).where(held).add_cte(renewed)

    @cached_property
    def forget_limits(self) -> sa.Executable:
        """Forget limit keys that nobody has used for long."""
        old = sa.select(svc_job_limits.c.key).where(svc_job_limits.c.due < sa.bindparam("before")).limit(_take())
        locked = (old.with_for_update(skip_locked=True) if self._postgresql else old).cte("old")
        return sa.delete(svc_job_limits).where(svc_job_limits.c.key.in_(sa.select(locked.c.key)))

    def purge(self, *, dead: bool) -> sa.Executable:
        """Delete what has finished, the oldest first."""
        ended = in_state(JobState.DEAD) if dead else in_state(JobState.SUCCEEDED, JobState.CANCELLED)
        condition = sa.and_(ended, _c.finished_at <= self._after("before"))
        found = sa.select(_c.id).where(condition).order_by(_c.finished_at).limit(_take())
        old = (found.with_for_update(skip_locked=True) if self._postgresql else found).cte("old")
        return sa.delete(svc_jobs).where(self._among(old)).returning(_c.id)

    @cached_property
    def stats(self) -> sa.Executable:
        """How many jobs are in each state, and since when the oldest that waits is due."""
        oldest = sa.func.min(_c.available_at).label("oldest")
        numbers = sa.select(_c.state, sa.func.count().label("jobs"), oldest, self._now.label("now"))
        return numbers.group_by(_c.state)

    @cached_property
    def queues(self) -> sa.Executable:
        """The same for each queue, of the jobs that wait or run."""
        oldest = sa.func.min(_c.available_at).label("oldest")
        numbers = sa.select(_c.queue, _c.state, sa.func.count().label("jobs"), oldest, self._now.label("now"))
        waits_or_runs = (JobState.READY, SCHEDULED, JobState.RUNNING)  # apart: each has an index without the others
        return sa.union_all(*(numbers.where(in_state(state)).group_by(_c.queue, _c.state) for state in waits_or_runs))

    def configure(self, values: Mapping[str, Any]) -> sa.Executable:
        """Keep these facts of a queue."""
        return (
            insert(svc_job_queues)
            .values(**values)
            .on_conflict_do_update(index_elements=["name"], set_={k: v for k, v in values.items() if k != "name"})
        )

    def list(self, state: JobState | None, equal: Mapping[str, str], before: str | None, limit: int) -> sa.Executable:
        """The newest jobs."""
        jobs = sa.select(*(_c[name] for name in JOB_COLUMNS))
        wanted = [_c[name] == value for name, value in equal.items()]
        if state is not None:
            wanted.append(waiting() if state is JobState.READY else in_state(state))
        if state not in (JobState.RUNNING, JobState.DEAD):
            return _newest(jobs.where(*wanted), _c, before, limit)
        # Few among all jobs: from the index that has no others, and sorted then.
        few = sa.select(_c.id, _c.created_at).where(*wanted).cte("few").prefix_with("MATERIALIZED")
        return _newest(jobs.where(_c.id.in_(_newest(sa.select(few.c.id), few.c, before, limit))), _c, None, limit)

    def _among(self, jobs: sa.CTE) -> sa.ColumnElement[bool]:
        ids = sa.select(jobs.c.id)
        if self._postgresql:  # an array keeps the planner on the primary key, however many rows it expects
            return _c.id == sa.func.any(sa.func.array(ids.scalar_subquery()))
        return _c.id.in_(ids)

    def _after(self, duration: str) -> Any:
        if self._postgresql:
            return self._now + sa.bindparam(duration, type_=sa.Interval)
        return sa.bindparam(duration, type_=UtcDateTime)

    def _rank_after_due(self) -> Any:
        if self._postgresql:
            micros = sa.cast(sa.extract("epoch", self._after("due")) * sa.literal_column("1000000"), sa.BigInteger)
            return micros - _PRIORITY
        return sa.bindparam("due_micros", type_=sa.BigInteger) - _PRIORITY


def _newest(found: sa.Select[Any], of: Any, before: str | None, limit: int) -> sa.Select[Any]:
    """The newest of these, and before this job."""
    if before is not None:
        last = sa.select(_c.created_at, _c.id).where(_c.id == before).subquery("last")
        found = found.join(last, sa.tuple_(of.created_at, of.id) < sa.tuple_(last.c.created_at, last.c.id))
    return found.order_by(of.created_at.desc(), of.id.desc()).limit(limit)


def _text(state: str) -> sa.ColumnClause[str]:
    return sa.literal_column(f"'{state}'", sa.String)


def in_state(*states: str) -> sa.ColumnElement[bool]:
    """The jobs in one of these stored states."""
    return _c.state == _text(states[0]) if len(states) == 1 else _c.state.in_([_text(state) for state in states])


def waiting() -> sa.ColumnElement[bool]:
    """The jobs that are `JobState.READY`, due or not."""
    return in_state(JobState.READY, SCHEDULED)


def _take() -> sa.BindParameter[int]:
    # Part of the text: with a limit that it does not know, PostgreSQL would plan the statement anew each time.
    return sa.bindparam("take", type_=sa.Integer, literal_execute=True)
