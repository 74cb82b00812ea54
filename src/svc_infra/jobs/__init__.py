"""Background jobs: stored with the caller's rows, run at least once, on SQL, Redis or memory.

- `task`, `arguments`, `context`: functions as jobs · `retry`: what becomes of failures · `workers`, `schedules`
- `job`, `queue`: what a job is, and the ports · `backends`, `sql`, `redis`: where jobs are kept
- `flows`: batches, chains, workflows · `easy`, `add`, `http`: the ways in
"""

from svc_infra.jobs.backends import InMemoryJobQueue
from svc_infra.jobs.context import JobContext
from svc_infra.jobs.easy import easy_jobs
from svc_infra.jobs.job import Job, JobRequest, JobState, Limit, Unique
from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.jobs.redis import RedisJobQueue
from svc_infra.jobs.retry import Cancel, Retry, Snooze
from svc_infra.jobs.schedules import Schedule, Scheduler, at, cron, every
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.task import Task, task
from svc_infra.jobs.workers import Worker

__all__ = [
    "Cancel", "InMemoryJobQueue", "Job", "JobContext", "JobQueue", "JobRequest", "JobState", "JobStore", "Limit",
    "RedisJobQueue", "Retry", "Schedule", "Scheduler", "Snooze", "SqlJobQueue", "Task", "Unique", "Worker", "at",
    "cron", "easy_jobs", "every", "task",
]  # fmt: skip
