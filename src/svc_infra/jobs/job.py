"""What a job is, what it may hold, and how long it waits before it is tried again."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Literal, TypeVar

import orjson

from svc_infra.errors import ValidationError
from svc_infra.obs.context import current
from svc_infra.types import new_id_text

NAME_LIMIT_CHARS = 200
PAYLOAD_LIMIT_BYTES = 1024 * 1024
RESULT_LIMIT_BYTES = 1024 * 1024
ERROR_LIMIT_CHARS = 10_000
DELAY_LIMIT_SECONDS = 366 * 86400.0
DURATION_LIMIT_SECONDS = 7 * 86400.0
PRIORITY_LIMIT = 1000
ATTEMPTS_LIMIT = 1000
DEFAULT_MAX_ATTEMPTS = 5
DEFAULT_BACKOFF_SECONDS = 5.0
DEFAULT_MAX_CRASHES = 3
BACKOFF_CAP_SECONDS = 3600.0
AGEING_SECONDS = 60.0
"""How much longer a job must have waited to go before one whose priority is a point higher."""
RATE_LIMIT_JOBS = 1_000_000
FORMAT_VERSION = 1
"""The version of stored jobs that this code writes, and the newest that it can read."""

N = TypeVar("N", int, float)

UNREADABLE = "$unreadable"
"""The one key of a payload, context or result that was stored damaged; its value is how the stored text begins."""


class JobState(StrEnum):
    """Where a job is; the last three are terminal."""

    READY = "ready"  # waits for a worker, perhaps until `available_at`
    RUNNING = "running"  # a worker holds it until its lease ends
    SUCCEEDED = "succeeded"
    DEAD = "dead"  # out of attempts: kept in the dead letter until replayed or purged
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Unique:
    """At most one job of a key; what another one of that key becomes is up to whoever enqueues it.

    Attributes:
        key: Held by the job that was stored with it, as long as that is kept.
        window_seconds: The key is free again this long after its holder was stored; None: as long as it is kept.
        states: The holder only counts while it is in one of these.
        on_conflict: "skip" leaves the holder as it is. "replace" gives a holder that waits the new task, payload,
            queue, priority, time and options. "debounce" is "replace", and a holder that waits starts over waiting:
            only the last of several calls in a row counts, `delay_seconds` after it. A holder that runs or has
            finished stays as it is.
    """

    key: str
    window_seconds: float | None = None
    states: frozenset[JobState] = frozenset(JobState)
    on_conflict: Literal["skip", "replace", "debounce"] = "skip"


@dataclass(frozen=True, slots=True)
class Limit:
    """What all jobs of a key share, over all queues and workers; the claiming job's own numbers count.

    Attributes:
        key: Say "mail" or "mail:customer-7".
        concurrency: At most so many of them run at the same time.
        rate: At most so many of them start at once, and then one each `period_seconds / rate` (GCRA).
        period_seconds: See `rate`.
    """

    key: str
    concurrency: int | None = None
    rate: int | None = None
    period_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as a queue last saw it.

    Attributes:
        id: UUIDv7, or what the caller chose.
        name: The task's name.
        payload: JSON object given to the task.
        queue: The named queue that it waits in.
        priority: Higher runs first; a point is worth `AGEING_SECONDS` of waiting.
        attempts: Attempts begun, the current one included.
        max_attempts: After this many, crashes not counted, it goes to the dead letter.
        crashes: How many of those attempts ended without an answer: the worker died or stalled beyond its lease.
        backoff_seconds: The first retry's upper delay; doubles with each attempt.
        timeout_seconds: Longest run of one attempt; None for the worker's default.
        token: The fencing token of the attempt that holds it; new with each claim, None when nobody holds it. Also
            a good idempotency key for calls to other services.
        worker_id: Who holds it, or held it last.
        lease_expires_at: When another worker may take it, unless the lease is renewed.
        unique_key: While a job with this key is kept, enqueueing the key again gives that job; see `Unique`.
        limit_key: See `Limit`.
        tenant: Whose turn it takes: tenants that wait for the same queue take turns. From the context.
        version: Of the format in which it is stored.
        fingerprint: The same for errors of one kind and place; of the last error.
        cancel_requested: Somebody has cancelled it while it ran; it will not run again.
        context: Tenant, request id, trace and principal of whoever enqueued it.
        progress_done, progress_total: What the task last reported; `total` 0 when unknown.
    """

    id: str
    name: str
    payload: Mapping[str, Any]
    queue: str
    state: JobState
    priority: int = 0
    attempts: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    crashes: int = 0
    backoff_seconds: float = DEFAULT_BACKOFF_SECONDS
    timeout_seconds: float | None = None
    created_at: datetime
    available_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    token: str | None = None
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    unique_key: str | None = None
    limit_key: str | None = None
    tenant: str = ""
    version: int = FORMAT_VERSION
    last_error: str | None = None
    fingerprint: str = ""
    cancel_requested: bool = False
    progress_done: int = 0
    progress_total: int = 0
    result: Any = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job to be stored with others in one call; the fields are the arguments of `JobQueue.enqueue`."""

    name: str
    payload: Mapping[str, Any] | None = None
    queue: str = "default"
    delay_seconds: float = 0.0
    at: datetime | None = None
    priority: int = 0
    max_attempts: int | None = None
    backoff_seconds: float | None = None
    timeout_seconds: float | None = None
    unique_key: str | None = None
    unique: Unique | None = None
    limit: Limit | None = None
    job_id: str | None = None


@dataclass(slots=True)
class NewJob:
    """A job as a caller asked for it: checked, complete, and serialised. Nobody changes it.

    Attributes:
        chosen_id: Whether the caller chose the id, so that it may be kept already.
        at: When it is due; None for `delay_seconds` from now.
    """

    id: str
    payload: str
    chosen_id: bool
    name: str
    queue: str
    priority: int
    max_attempts: int
    backoff_seconds: float
    timeout_seconds: float | None
    delay_seconds: float
    at: datetime | None
    unique: Unique | None
    limit: Limit | None
    context: str
    tenant: str


SHARED_FIELDS = tuple(field.name for field in fields(NewJob))[3:]
"""The fields of `NewJob` that jobs of one task stored at once often have in common."""
_options_of = attrgetter(*(field.name for field in fields(JobRequest) if field.name not in ("payload", "job_id")))


def new_jobs(requests: Sequence[JobRequest], *, max_attempts: int, backoff_seconds: float) -> list[NewJob]:
    """Check what a caller asks for; options that follow each other unchanged are checked once.

    Args:
        max_attempts, backoff_seconds: Where a request has none.

    Raises:
        ValidationError: Something is out of its limits.
    """
    carried = current().carried()
    context = (orjson.dumps(carried).decode() if carried else "{}", carried.get("tenant_id", "")[:NAME_LIMIT_CHARS])
    jobs: list[NewJob] = []
    options: object = None
    shared: tuple[Any, ...] = ()
    for request in requests:
        if (asked := _options_of(request)) != options:
            shared = (*_checked_options(request, max_attempts, backoff_seconds), *context)
            options = asked
        chosen = request.job_id is not None
        job_id = check_name("id", request.job_id) if chosen else new_id_text()  # type: ignore[arg-type]
        jobs.append(NewJob(job_id, payload_text({} if request.payload is None else request.payload), chosen, *shared))
    return jobs


def _checked_options(request: JobRequest, max_attempts: int, backoff_seconds: float) -> tuple[Any, ...]:
    if request.max_attempts is not None:
        max_attempts = request.max_attempts
    if request.backoff_seconds is not None:
        backoff_seconds = request.backoff_seconds
    if request.timeout_seconds is not None:
        check_number("timeout_seconds", request.timeout_seconds, 0.001, DURATION_LIMIT_SECONDS)
    return (
        check_name("name", request.name),
        check_name("queue", request.queue),
        check_number("priority", request.priority, -PRIORITY_LIMIT, PRIORITY_LIMIT),
        check_number("max_attempts", max_attempts, 1, ATTEMPTS_LIMIT),
        check_number("backoff_seconds", backoff_seconds, 0.0, DURATION_LIMIT_SECONDS),
        request.timeout_seconds,
        check_number("delay_seconds", request.delay_seconds, 0.0, DELAY_LIMIT_SECONDS),
        _time(request),
        _unique(request),
        None if request.limit is None else _limit(request.limit),
    )


def _time(request: JobRequest) -> datetime | None:
    if request.at is not None and (request.at.tzinfo is None or request.delay_seconds):
        raise ValidationError("A job's `at` is a time with a time zone, and is given without `delay_seconds`.")
    return request.at


def _unique(request: JobRequest) -> Unique | None:
    unique = request.unique
    if unique is None:
        return None if request.unique_key is None else Unique(check_name("unique_key", request.unique_key))
    if request.unique_key is not None or not unique.states or unique.on_conflict not in ("skip", "replace", "debounce"):
        raise ValidationError(
            'Give `unique_key` or `unique`; the latter with states and with "skip", "replace" or "debounce".'
        )
    if unique.window_seconds is not None:
        check_number("unique window_seconds", unique.window_seconds, 0.001, DELAY_LIMIT_SECONDS)
    check_name("unique key", unique.key)
    return unique


def _limit(limit: Limit) -> Limit:
    check_name("limit key", limit.key)
    check_limits("limit", limit.concurrency, limit.rate, limit.period_seconds)
    if limit.concurrency is None and limit.rate is None:
        raise ValidationError("A job's limit needs a concurrency or a rate.")
    return limit


def check_limits(what: str, concurrency: int | None, rate: int | None, period_seconds: float) -> None:
    """Check the numbers of a limit.

    Raises:
        ValidationError: One of them is out of its limits.
    """
    for kind, number in (("concurrency", concurrency), ("rate", rate)):
        if number is not None:
            check_number(f"{what} {kind}", number, 1, RATE_LIMIT_JOBS)
    check_number(f"{what} period_seconds", period_seconds, 0.001, DURATION_LIMIT_SECONDS)


def check_name(what: str, name: str) -> str:
    """A name, unchanged.

    Raises:
        ValidationError: It is empty, too long, or holds spaces or characters that cannot be printed.
    """
    if not (isinstance(name, str) and 0 < len(name) <= NAME_LIMIT_CHARS and name.isprintable() and " " not in name):
        raise ValidationError(f"A job's {what} is 1 to {NAME_LIMIT_CHARS} printable characters without spaces.")
    return name


def check_number(what: str, value: N, least: N, most: N) -> N:
    """A number, unchanged.

    Raises:
        ValidationError: It is no finite number from `least` to `most`, or no whole one where these are whole.
    """
    kinds = int if isinstance(least, int) else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not (least <= value <= most):
        whole = "whole " if kinds is int else ""
        raise ValidationError(f"A job's {what} is a {whole}number from {least:g} to {most:g}.")
    return value


def result_text(result: Any) -> str | None:
    """What a task returned, as JSON; None for None.

    Raises:
        ValidationError: It is no JSON or is larger than 1 MiB.
    """
    return None if result is None else _json_text("result", result, RESULT_LIMIT_BYTES)


def error_text(error: str) -> str:
    """An error as every database can keep it: cut at 10,000 characters, without NUL and lone surrogates."""
    kept = error[:ERROR_LIMIT_CHARS].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return kept[:ERROR_LIMIT_CHARS]


def read_object(stored: str | bytes) -> dict[str, Any]:
    """A stored payload or context; under the one key `UNREADABLE` when it is no JSON object any more."""
    try:
        value = orjson.loads(stored)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {UNREADABLE: str(stored)[:1000]}


def read_result(stored: str | bytes | None) -> Any:
    """A stored result; an object under the one key `UNREADABLE` when it is no JSON any more."""
    try:
        return None if stored is None else orjson.loads(stored)
    except orjson.JSONDecodeError:
        return {UNREADABLE: str(stored)[:1000]}


def backoff_delay(attempt: int, backoff_seconds: float, *, cap_seconds: float = BACKOFF_CAP_SECONDS) -> float:
    """How long a failed attempt waits for the next one: exponential with full jitter.

    Args:
        attempt: The number of the attempt that failed, from 1.
        backoff_seconds: The upper limit after the first attempt; doubles with each.
        cap_seconds: The limit of the upper limit.

    Returns:
        Seconds, uniform between 0 and the limit (Brooker, "Exponential Backoff And Jitter", AWS 2015).
    """
    upper = min(cap_seconds, math.ldexp(backoff_seconds, min(max(attempt, 1) - 1, 64)))
    return random.uniform(0.0, upper)  # noqa: S311 - spreads load, guards nothing


def payload_text(payload: Mapping[str, Any]) -> str:
    """A payload, as JSON.

    Raises:
        ValidationError: It is no JSON object or is larger than 1 MiB.
    """
    if not isinstance(payload, dict):
        if not isinstance(payload, Mapping):
            raise ValidationError("A job's payload is a JSON object: give a mapping.")
        payload = dict(payload)
    if UNREADABLE in payload:
        raise ValidationError(f"A job's payload may not have the key {UNREADABLE!r}.")
    return _json_text("payload", payload, PAYLOAD_LIMIT_BYTES)


def _json_text(what: str, value: Any, limit_bytes: int) -> str:
    try:
        text = orjson.dumps(value)
    except (TypeError, RecursionError) as error:
        raise ValidationError(f"A job's {what} must be JSON: {error}.") from error
    if len(text) > limit_bytes:
        raise ValidationError(f"A job's {what} is {len(text):,} bytes long; the limit is {limit_bytes:,}.")
    return text.decode()
