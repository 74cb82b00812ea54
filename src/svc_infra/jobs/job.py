"""What a job is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job is; the last three are terminal."""

    READY = "ready"  # waits for a worker, perhaps until `available_at`
    RUNNING = "running"  # a worker holds it until its lease ends
    SUCCEEDED = "succeeded"
    DEAD = "dead"  # out of attempts: kept in the dead letter until replayed or purged
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as a queue last saw it.

    Attributes:
        id: UUIDv7, or what the caller chose.
        name: The task's name.
        payload: JSON object given to the task.
        queue: The named queue that it waits in.
        priority: Higher runs first.
        attempts: Attempts begun, the current one included.
        max_attempts: After this many it goes to the dead letter.
        backoff_seconds: The first retry's upper delay; doubles with each attempt.
        timeout_seconds: Longest run of one attempt; None for the worker's default.
        token: The fencing token of the attempt that holds it; new with each claim, None when nobody holds it. Also
            a good idempotency key for calls to other services.
        lease_expires_at: When another worker may take it, unless the lease is renewed.
        unique_key: While a job with this key is kept, enqueueing the key again gives that job.
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
    max_attempts: int = 5
    backoff_seconds: float = 5.0
    timeout_seconds: float | None = None
    created_at: datetime
    available_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    token: str | None = None
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    unique_key: str | None = None
    last_error: str | None = None
    progress_done: int = 0
    progress_total: int = 0
    result: Any = None
    context: Mapping[str, str] = field(default_factory=dict)
