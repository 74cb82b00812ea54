"""Jobs that are stored when their time comes, once for each tick however many schedulers run.

- `times`: points in time that repeat · `schedule`: what runs when, and its policies
- `definition`: a schedule as data · `document`: schedules in a YAML file
- `store`: the port, what is known of schedules and ticks · `memory` · `sql`, with `models`
- `decision`: what becomes of what is due · `scheduler`: does it · `schedules`: looking after them at run time
"""

from svc_infra.jobs.schedules.document import load_schedules
from svc_infra.jobs.schedules.memory import InMemoryScheduleStore
from svc_infra.jobs.schedules.schedule import Missed, Overlap, Schedule, at, cron, every
from svc_infra.jobs.schedules.scheduler import Scheduler
from svc_infra.jobs.schedules.schedules import ScheduleInfo, Schedules
from svc_infra.jobs.schedules.sql import SqlScheduleStore
from svc_infra.jobs.schedules.store import Outcome, ScheduleStore, Tick

__all__ = [
    "InMemoryScheduleStore",
    "Missed",
    "Outcome",
    "Overlap",
    "Schedule",
    "ScheduleInfo",
    "ScheduleStore",
    "Scheduler",
    "Schedules",
    "SqlScheduleStore",
    "Tick",
    "at",
    "cron",
    "every",
    "load_schedules",
]
