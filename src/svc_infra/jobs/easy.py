"""The queue that the settings ask for."""

from __future__ import annotations

from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, Outbox
from svc_infra.errors import ConfigurationError
from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.redis.queue import RedisJobQueue
from svc_infra.jobs.schedules import Scheduler, ScheduleStore, SqlScheduleStore
from svc_infra.jobs.sql.queue import SqlJobQueue
from svc_infra.types import Clock


def easy_jobs(settings: Settings | None = None, db: AsyncDatabase | None = None) -> tuple[JobQueue, Scheduler]:
    """A queue and a scheduler in one call, for a program without an app; an app calls `add_jobs`.

    Args:
        settings: Read from the environment when left out; `JOBS_DRIVER` is `sql`, `redis`, `memory`, or `auto`: Redis
            where `REDIS_URL` is set, else SQL.
        db: The database of the SQL queue, whose tables must exist; `SQL_URL` when left out.

    Returns:
        The queue, which is a `JobStore` too, and a scheduler without schedules for it.

    Raises:
        ConfigurationError: The driver is Redis and there is no `REDIS_URL`, or a URL cannot be read.
    """
    settings = Settings() if settings is None else settings
    if db is None and driver(settings) == "sql":
        db = AsyncDatabase(settings.sql.url)
    queue = queue_of(settings, db=db)
    return queue, Scheduler(queue, store=schedule_store(queue, db=db))


def driver(settings: Settings) -> str:
    """Which backend the settings ask for: `sql`, `redis` or `memory`."""
    if settings.jobs.driver != "auto":
        return settings.jobs.driver
    return "sql" if settings.redis.url is None else "redis"


def queue_of(
    settings: Settings, *, db: AsyncDatabase | None = None, outbox: Outbox | None = None, clock: Clock | None = None
) -> JobQueue:
    """The queue that the settings ask for.

    Args:
        db: The database of the SQL queue.
        outbox: Carries the jobs that are stored in a unit of work to Redis.
        clock: Where the time comes from; each backend's own choice when left out.

    Raises:
        ConfigurationError: The database or `REDIS_URL` that the backend needs is missing.
    """
    jobs = settings.jobs
    match driver(settings):
        case "memory":
            return InMemoryJobQueue(clock=clock, max_attempts=jobs.max_attempts, backoff_seconds=jobs.backoff_seconds)
        case "redis":
            if settings.redis.url is None:
                raise ConfigurationError("JOBS_DRIVER is redis, but there is no REDIS_URL: set it.")
            return RedisJobQueue(
                settings.redis.url,
                outbox=outbox,
                clock=clock,
                max_attempts=jobs.max_attempts,
                backoff_seconds=jobs.backoff_seconds,
            )
        case _:
            if db is None:
                raise ConfigurationError("The SQL queue needs a database: call add_db(app).")
            return SqlJobQueue(db, clock=clock, max_attempts=jobs.max_attempts, backoff_seconds=jobs.backoff_seconds)


def schedule_store(
    queue: JobQueue, *, db: AsyncDatabase | None = None, clock: Clock | None = None
) -> ScheduleStore | None:
    """Where the schedules of a queue's jobs are kept: in a database, where the queue can store jobs in its sessions.

    Args:
        queue: Where the jobs go.
        db: The database whose outbox leads to the queue; a SQL queue has its own.
        clock: Where the time comes from; the store's own choice when left out.

    Returns:
        None for each scheduler's own memory.
    """
    if isinstance(queue, SqlJobQueue):
        return SqlScheduleStore(queue.db, clock=clock)
    if isinstance(queue, RedisJobQueue) and queue.stores_in_sessions and db is not None:
        return SqlScheduleStore(db, clock=clock)
    return None
