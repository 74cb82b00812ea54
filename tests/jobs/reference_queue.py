"""What a queue should do, as simply as it can be said: one dictionary, no index, no concurrency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from svc_infra.errors import ConflictError, NotFoundError
from svc_infra.jobs.backends.checked import LEASE_ENDED
from svc_infra.jobs.job import AGEING_SECONDS, DEFAULT_MAX_CRASHES, Job, JobRequest, JobState, Unique

RUNNING, READY, DEAD, CANCELLED = JobState.RUNNING, JobState.READY, JobState.DEAD, JobState.CANCELLED
ENDED = {JobState.SUCCEEDED, DEAD, CANCELLED}
NOT_SHOWN: dict[str, Any] = {"token": None, "context": {}}
"""What is a backend's own: that an attempt holds a job is seen by who may end it."""


class ReferenceQueue:
    """Jobs by their ids, and what each step does to them.

    Args:
        now: Tells the time.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.jobs: dict[str, Job] = {}
        self.paused: set[str] = set()

    def enqueue(self, request: JobRequest, tenant: str) -> str:
        """The id of the job that is kept."""
        unique, new = request.unique, self._new(request, tenant)
        if new.id in self.jobs:
            return new.id
        if unique is None:
            self.jobs[new.id] = new
            return new.id
        holder = next((job for job in self.jobs.values() if job.unique_key == unique.key), None)
        if holder is None or not self._counts(holder, unique):
            if holder is not None:
                self._change(holder.id, unique_key=None)
            self.jobs[new.id] = new
            return new.id
        if unique.on_conflict != "skip" and holder.state is READY:
            due = holder.available_at if unique.on_conflict == "replace" else new.available_at
            self.jobs[holder.id] = replace(new, id=holder.id, created_at=holder.created_at, available_at=due)
        return holder.id

    def crash(self) -> None:
        """What has lost its lease is no longer held."""
        for job in list(self.jobs.values()):
            if job.lease_expires_at is not None and job.lease_expires_at <= self._now():
                crashes = job.crashes + 1
                self._change(job.id, crashes=crashes, last_error=LEASE_ENDED)
                self._give_back(job.id, job.available_at, DEAD if crashes >= DEFAULT_MAX_CRASHES else None)

    def due(self, queues: Sequence[str]) -> list[Job]:
        """What a worker of these queues could be given, in the order in which each tenant's come."""
        open_queues = set(queues) - self.paused
        jobs = [job for job in self.jobs.values() if job.state is READY and job.queue in open_queues]
        return sorted((job for job in jobs if job.available_at <= self._now()), key=_place)

    def claimed(self, job: Job, lease_seconds: float) -> None:
        """A worker was given this."""
        holder = {"token": job.token, "worker_id": job.worker_id, "lease_expires_at": self._after(lease_seconds)}
        attempts = self.jobs[job.id].attempts + 1
        self._change(job.id, state=RUNNING, attempts=attempts, started_at=self._now(), **holder)

    def holds(self, attempt: Job) -> bool:
        """Whether this attempt may still end its job."""
        job = self.jobs.get(attempt.id)
        return job is not None and job.state is RUNNING and job.token == attempt.token

    def renew(self, attempt: Job, seconds: float) -> None:
        """Its lease begins anew."""
        self._change(attempt.id, lease_expires_at=self._after(seconds))

    def ack(self, attempt: Job, result: Any) -> None:
        """It has succeeded."""
        self._change(attempt.id, result=result)
        self._end(attempt.id, JobState.SUCCEEDED)

    def fail(self, attempt: Job, error: str, delay_seconds: float, end: JobState | None) -> JobState:
        """It has failed; the state that follows."""
        job = self._change(attempt.id, last_error=error)
        if end is None and job.attempts - job.crashes >= job.max_attempts:
            end = DEAD
        return self._give_back(job.id, self._after(delay_seconds), end)

    def release(self, attempt: Job, delay_seconds: float) -> None:
        """It has not been."""
        job = self._change(attempt.id, attempts=self.jobs[attempt.id].attempts - 1)
        self._give_back(job.id, self._after(delay_seconds) if delay_seconds else job.available_at, None)

    def progress(self, attempt: Job, done: int) -> None:
        """It is so far."""
        self._change(attempt.id, progress_done=done, progress_total=10)

    def cancel(self, job_id: str) -> None:
        """Not to run, or not to run again."""
        if self._kept(job_id, READY, RUNNING).state is RUNNING:
            self._change(job_id, cancel_requested=True)
        else:
            self._end(job_id, CANCELLED)

    def retry(self, job_id: str) -> None:
        """As if it had never run."""
        self._kept(job_id, DEAD, CANCELLED)
        zeros = dict.fromkeys(("attempts", "crashes", "progress_done", "progress_total"), 0)
        again: dict[str, Any] = {
            "state": READY,
            "available_at": self._now(),
            "finished_at": None,
            "cancel_requested": False,
        }
        self._change(job_id, **zeros, **again)

    def old(self, age_seconds: float, *, dead: bool) -> list[Job]:
        """What a purge may delete, in its order."""
        ended = {DEAD} if dead else ENDED - {DEAD}
        before = self._after(-age_seconds)
        jobs = [job for job in self.jobs.values() if job.state in ended and _end_of(job) <= before]
        return sorted(jobs, key=_end_of)

    def stats(self) -> tuple[dict[JobState, int], float]:
        """How many jobs are in each state, and how old the oldest due one is."""
        counts = Counter(job.state for job in self.jobs.values())
        ages = [(self._now() - job.available_at).total_seconds() for job in self.jobs.values() if job.state is READY]
        return {state: counts[state] for state in JobState}, max(0.0, *ages, 0.0)

    def shown(self) -> list[Job]:
        """Every job as it is to be seen, the newest first."""
        jobs = sorted(self.jobs.values(), key=lambda job: (job.created_at, job.id), reverse=True)
        return [replace(job, **NOT_SHOWN) for job in jobs]

    def _new(self, request: JobRequest, tenant: str) -> Job:
        now = self._now()
        return Job(
            id=str(request.job_id),
            name=request.name,
            payload=request.payload or {},
            queue=request.queue,
            state=READY,
            priority=request.priority,
            max_attempts=request.max_attempts or 0,
            created_at=now,
            available_at=now + timedelta(seconds=request.delay_seconds),
            unique_key=None if request.unique is None else request.unique.key,
            tenant=tenant,
        )

    def _counts(self, holder: Job, unique: Unique) -> bool:
        window = unique.window_seconds
        fresh = window is None or self._now() - holder.created_at < timedelta(seconds=window)
        return fresh and holder.state in unique.states

    def _give_back(self, job_id: str, available_at: datetime, end: JobState | None) -> JobState:
        if self.jobs[job_id].cancel_requested:
            end = CANCELLED
        if end is not None:
            self._end(job_id, end)
            return end
        self._change(job_id, state=READY, available_at=available_at, token=None, lease_expires_at=None)
        return READY

    def _end(self, job_id: str, state: JobState) -> None:
        self._change(job_id, state=state, finished_at=self._now(), token=None, lease_expires_at=None)

    def _kept(self, job_id: str, *states: JobState) -> Job:
        if job_id not in self.jobs:
            raise NotFoundError("Job", job_id)
        if self.jobs[job_id].state not in states:
            raise ConflictError("It is in another state.")
        return self.jobs[job_id]

    def _change(self, job_id: str, **changes: Any) -> Job:
        job = self.jobs[job_id] = replace(self.jobs[job_id], **changes)
        return job

    def _after(self, seconds: float) -> datetime:
        return self._now() + timedelta(seconds=seconds)


def first_of_each(jobs: Sequence[Job], lane: Callable[[Job], Any]) -> dict[Any, list[str]]:
    """The ids of the jobs of each lane, in their order."""
    ordered = sorted(jobs, key=lane)
    return {key: [job.id for job in group] for key, group in groupby(ordered, key=lane)}


def _place(job: Job) -> tuple[datetime, str]:
    return job.available_at - timedelta(seconds=AGEING_SECONDS * job.priority), job.id


def _end_of(job: Job) -> datetime:
    assert job.finished_at is not None
    return job.finished_at
