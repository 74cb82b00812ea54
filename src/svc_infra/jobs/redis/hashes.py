"""A job as Redis keeps it: a hash whose missing fields have their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from svc_infra.jobs.job import FORMAT_VERSION, Job, JobState, NewJob, read_object, read_result

FIRST_VERSION = 1
"""The format version of jobs that tell none."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def duration(seconds: float) -> int:
    """Seconds, in microseconds."""
    return round(seconds * 1e6)


def to_store(job: NewJob) -> tuple[Any, ...]:
    """A job as `enqueue.lua` takes it."""
    fields: list[str | int | float] = ["name", job.name, "payload", job.payload, "queue", job.queue]
    fields += ("max_attempts", job.max_attempts, "backoff_seconds", repr(job.backoff_seconds))
    if FORMAT_VERSION != FIRST_VERSION:
        fields += ("version", FORMAT_VERSION)
    if job.context != "{}":
        fields += ("context", job.context)
    if job.priority:
        fields += ("priority", job.priority)
    if job.tenant:
        fields += ("tenant", job.tenant)
    if job.timeout_seconds is not None:
        fields += ("timeout_seconds", repr(job.timeout_seconds))
    limit_key = ""
    if (limit := job.limit) is not None:
        limit_key = limit.key
        fields += ("limit_key", limit_key, "limit_period", duration(limit.period_seconds))
        if limit.concurrency is not None:
            fields += ("limit_concurrency", limit.concurrency)
        if limit.rate is not None:
            fields += ("limit_rate", limit.rate)
    at = 0 if job.at is None else micros(job.at)
    delay = duration(job.delay_seconds)
    place = (job.id, job.chosen_id, job.queue, job.priority, limit_key, job.tenant, delay, at)
    if (unique := job.unique) is None:
        return (*place, fields, False)
    fields += ("unique_key", unique.key)
    window = 0 if unique.window_seconds is None else duration(unique.window_seconds)
    return (*place, fields, unique.key, window, sorted(unique.states), unique.on_conflict)


def read_job(job_id: str, flat: Sequence[bytes], claim: dict[str, Any] | None = None) -> Job:
    """A job from its hash: fields and values in turn.

    Args:
        claim: What a claim has changed in it since.
    """
    values: dict[str, Any] = {"id": job_id, "payload": None, "context": None, "version": FIRST_VERSION}
    fields = iter(flat)
    for field, value in zip(fields, fields, strict=True):
        reader = _READERS.get(field)
        if reader is not None:
            values[reader[0]] = reader[1](value)
    payload, context = values["payload"], values["context"]
    values["payload"] = read_object(b"" if payload is None else payload)
    values["context"] = {} if context is None else read_object(context)
    if claim is not None:
        values |= claim
        values["attempts"] = values.get("attempts", 0) + 1
    elif values["state"] is not JobState.RUNNING:
        values["token"] = values["lease_expires_at"] = None
    return Job(**values)


def moment_of(value: bytes | int) -> datetime:
    """The time of so many microseconds since 1970."""
    return _EPOCH + timedelta(0, 0, int(value))  # by place: half the cost


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


_KINDS: dict[Callable[[bytes], Any], tuple[str, ...]] = {
    bytes: ("payload", "context"),
    _text: (
        "name",
        "queue",
        "tenant",
        "token",
        "worker_id",
        "unique_key",
        "limit_key",
        "last_error",
        "fingerprint",
    ),
    int: ("priority", "attempts", "max_attempts", "crashes", "progress_done", "progress_total", "version"),
    float: ("backoff_seconds", "timeout_seconds"),
    moment_of: ("created_at", "available_at", "started_at", "finished_at", "lease_expires_at"),
    (lambda value: JobState(value.decode())): ("state",),
    (lambda value: value == b"1"): ("cancel_requested",),
    read_result: ("result",),
}
_READERS = {name.encode(): (name, read) for read, names in _KINDS.items() for name in names}
