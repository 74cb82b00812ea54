"""Background jobs: stored with the caller's rows, run at least once, on SQL, Redis or memory.

- `task`: `@task`, what its jobs carry, and the context that handlers get · `schedule`: jobs at fixed times
- `worker`: runs jobs · `retry`: what becomes of those that fail
- `job`: what a job is · `queue`: the ports `JobQueue` and `JobStore`
- `_memory`, `_sql`, `_redis`: their backends · `models`: the table of the SQL one
- `easy`: `easy_jobs` · `add`: `add_jobs`, `contribute_tasks` · `http`: `JobQueueDep`, `JobStoreDep`
"""

from svc_infra.jobs._memory import InMemoryJobQueue
from svc_infra.jobs._redis import RedisJobQueue
from svc_infra.jobs._sql import SqlJobQueue
from svc_infra.jobs.easy import easy_jobs
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import JobQueue, JobStore
from svc_infra.jobs.retry import Cancel, Retry
from svc_infra.jobs.schedule import Schedule, Scheduler, cron, every
from svc_infra.jobs.task import JobContext, Task, task
from svc_infra.jobs.worker import Worker

__all__ = [
    "Cancel",
    "InMemoryJobQueue",
    "Job",
    "JobContext",
    "JobQueue",
    "JobState",
    "JobStore",
    "RedisJobQueue",
    "Retry",
    "Schedule",
    "Scheduler",
    "SqlJobQueue",
    "Task",
    "Worker",
    "cron",
    "easy_jobs",
    "every",
    "task",
]
