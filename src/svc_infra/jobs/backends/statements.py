"""The statements that a queue runs on the table of jobs."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # SQLite compiles its ON CONFLICT too

from svc_infra.db.columns import UtcDateTime
from svc_infra.jobs.backends.checked import LEASE_ENDED, SWEEP_LIMIT_JOBS
from svc_infra.jobs.backends.models import SCHEDULED, svc_jobs
from svc_infra.jobs.job import JobState

_c = svc_jobs.c

_LET_GO: dict[str, Any] = {"token": None, "lease_expires_at": None}


class JobStatements:
    """Every statement that changes jobs, built once; SQLAlchemy compiles each once and asyncpg prepares it.

    States are literals, because parameters would keep the planners from the partial indexes.
    """

    def __init__(self, *, postgresql: bool) -> None:
        self._postgresql = postgresql
        self._claims: dict[int, sa.Executable] = {}
        self._now: Any = sa.bindparam("now", type_=UtcDateTime)
        self._new_token: Any = sa.func.lower(sa.func.hex(sa.func.randomblob(16)))
        if postgresql:
            self._new_token = sa.cast(sa.func.gen_random_uuid(), sa.Text)
            self._now = sa.type_coerce(sa.func.coalesce(self._now, sa.func.statement_timestamp()), UtcDateTime)
        self._by_id = _c.id == sa.bindparam("job_id")
        self._held = sa.update(svc_jobs).where(
            self._by_id, _c.token == sa.bindparam("held_token"), in_state(JobState.RUNNING)
        )
        self._delayed = sa.bindparam("delayed", type_=sa.Boolean)
        self._again = sa.case((self._delayed, _text(SCHEDULED)), else_=_text(JobState.READY))

    @cached_property
    def insert(self) -> sa.Executable:
        times = {"created_at": self._now, "available_at": self._after("due")}
        return insert(svc_jobs).values(times).on_conflict_do_nothing().returning(_c.id)

    @cached_property
    def holder(self) -> sa.Executable:
        key = sa.bindparam("held_key", type_=sa.String)
        return sa.select(_c.id).where(sa.or_(self._by_id, _c.unique_key == key)).order_by(self._by_id.desc()).limit(1)

    @cached_property
    def succeed(self) -> sa.Executable:
        done = {"state": _text(JobState.SUCCEEDED), "finished_at": self._now, "result": sa.bindparam("outcome")}
        return self._held.values(**_LET_GO, **done).returning(_c.id)

    @cached_property
    def fail(self) -> sa.Executable:
        spent = sa.or_(sa.bindparam("dead", type_=sa.Boolean), _c.attempts >= _c.max_attempts)
        return self._held.values(
            **_LET_GO,
            state=sa.case((spent, _text(JobState.DEAD)), else_=self._again),
            available_at=sa.case((spent, _c.available_at), else_=self._after("due")),
            finished_at=sa.case((spent, self._now)),
            last_error=sa.bindparam("error"),
        ).returning(_c.state)

    @cached_property
    def release(self) -> sa.Executable:
        return self._held.values(
            **_LET_GO,
            state=self._again,
            attempts=_c.attempts - 1,
            available_at=sa.case((self._delayed, self._after("due")), else_=_c.available_at),
        ).returning(_c.id)

    @cached_property
    def progress(self) -> sa.Executable:
        reported: dict[str, Any] = {"progress_done": sa.bindparam("done"), "progress_total": sa.bindparam("total")}
        return self._held.values(**reported).returning(_c.id)

    @cached_property
    def retry(self) -> sa.Executable:
        update = sa.update(svc_jobs).where(self._by_id, in_state(JobState.DEAD, JobState.CANCELLED))
        zeros = dict.fromkeys(("attempts", "crashes", "progress_done", "progress_total"), 0)
        ready = {"state": _text(JobState.READY), "available_at": self._now, "finished_at": None}
        return update.values(**zeros, **ready).returning(_c.id)

    @cached_property
    def cancel(self) -> sa.Executable:
        update = sa.update(svc_jobs).where(self._by_id, waiting())
        return update.values(state=_text(JobState.CANCELLED), finished_at=self._now).returning(_c.id)

    @cached_property
    def purge(self) -> sa.Executable:
        finished = sa.and_(in_state(JobState.SUCCEEDED, JobState.CANCELLED), _c.finished_at <= self._after("before"))
        old = self._locked("old", finished, _c.finished_at, limit=_take())
        return sa.delete(svc_jobs).where(self._among(old)).returning(_c.id)

    @cached_property
    def stats(self) -> sa.Executable:
        oldest = sa.func.min(_c.available_at).label("oldest")
        numbers = sa.select(_c.state, sa.func.count().label("jobs"), oldest, self._now.label("now"))
        return numbers.group_by(_c.state)

    @cached_property
    def renew(self) -> sa.Executable:
        """Renew leases; the rows are the jobs that are held.

        A row that is locked is skipped and counted as held: an `ack` of its own attempt is in a transaction still
        open, and must not keep the other leases waiting.
        """
        ids, tokens = (sa.bindparam(name, expanding=True, type_=sa.String) for name in ("ids", "tokens"))
        held = sa.and_(_c.id.in_(ids), _c.token.in_(tokens), in_state(JobState.RUNNING))
        update = sa.update(svc_jobs).values(lease_expires_at=self._after("end"))
        if not self._postgresql:
            return update.where(held).returning(_c.id)
        free = sa.select(_c.id).where(held).with_for_update(skip_locked=True).cte("free")
        renewed = update.where(self._among(free)).returning(_c.id).cte("renewed")
        return sa.select(_c.id).where(held).add_cte(renewed)

    def claim(self, queues: int) -> sa.Executable:
        """Claim from this many queues and put back what is due again; the rows with a token are the claimed jobs."""
        if queues not in self._claims:
            self._claims[queues] = self._claim([f"queue_{number}" for number in range(queues)])
        return self._claims[queues]

    def _claim(self, names: list[str]) -> sa.Executable:
        queues = [sa.bindparam(name, type_=sa.String) for name in names]
        served, running = _c.queue.in_(queues), in_state(JobState.RUNNING)
        spent = _c.attempts >= _c.max_attempts
        sweep: Any = sa.literal_column(str(SWEEP_LIMIT_JOBS))
        ended = sa.and_(running, _c.lease_expires_at <= self._now)
        due = sa.and_(in_state(SCHEDULED), served, _c.available_at <= self._now)
        order = (_c.priority.desc(), _c.available_at, _c.id)
        found = [
            self._locked("ended", ended, _c.lease_expires_at, limit=sweep, can=sa.and_(served, ~spent), back=sa.true()),
            self._locked("due", due, _c.available_at, limit=sweep, can=sa.true(), back=sa.true()),
        ]
        for queue in queues:  # each queue on its own, which keeps the planner on the index
            ready = sa.and_(in_state(JobState.READY), _c.queue == queue)
            found.append(
                self._locked(f"{queue.key}_head", ready, *order, limit=_take(), can=sa.true(), back=sa.false())
            )
        jobs = sa.union_all(*map(sa.select, found)).subquery("jobs")
        rank = sa.func.row_number().over(
            order_by=(jobs.c.can.desc(), jobs.c.priority.desc(), jobs.c.available_at, jobs.c.id)
        )
        ranked = sa.select(jobs.c.id, jobs.c.back, sa.and_(jobs.c.can, rank <= _take()).label("chosen")).cte("ranked")
        chosen = ranked.c.chosen
        return (
            sa.update(svc_jobs)
            .where(
                _c.id == ranked.c.id,
                sa.or_(chosen, ranked.c.back),
                self._among(ranked) if self._postgresql else sa.true(),
            )
            .values(
                state=sa.case(
                    (chosen, _text(JobState.RUNNING)),
                    (sa.and_(running, spent), _text(JobState.DEAD)),
                    else_=_text(JobState.READY),
                ),
                attempts=sa.case((chosen, _c.attempts + 1), else_=_c.attempts),
                crashes=sa.case((running, _c.crashes + 1), else_=_c.crashes),
                started_at=sa.case((chosen, self._now), else_=_c.started_at),
                finished_at=sa.case((sa.and_(running, spent), self._now)),
                token=sa.case((chosen, self._new_token)),
                worker_id=sa.case((chosen, sa.bindparam("claimant")), else_=_c.worker_id),
                lease_expires_at=sa.case((chosen, self._after("end"))),
                last_error=sa.case((running, LEASE_ENDED), else_=_c.last_error),
            )
            .returning(*_c)
        )

    def _locked(self, name: str, condition: Any, *order: Any, limit: Any, **flags: Any) -> sa.CTE:
        """The first jobs that nobody else is changing."""
        labels = [flag.label(name) for name, flag in flags.items()]
        jobs = sa.select(_c.id, _c.priority, _c.available_at, *labels).where(condition).order_by(*order).limit(limit)
        return (jobs.with_for_update(skip_locked=True) if self._postgresql else jobs).cte(name)

    def _among(self, jobs: sa.CTE) -> sa.ColumnElement[bool]:
        ids = sa.select(jobs.c.id)
        if self._postgresql:  # an array keeps the planner on the primary key, however many rows it expects
            return _c.id == sa.func.any(sa.func.array(ids.scalar_subquery()))
        return _c.id.in_(ids)

    def _after(self, duration: str) -> Any:
        if self._postgresql:
            return self._now + sa.bindparam(duration, type_=sa.Interval)
        return sa.bindparam(duration, type_=UtcDateTime)


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
