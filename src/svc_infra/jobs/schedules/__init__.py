"""Jobs that are stored when their time comes, once for each tick however many schedulers run.

- `times`: points in time that repeat · `schedule`: what runs when · `scheduler`: stores what is due
"""

from svc_infra.jobs.schedules.schedule import Schedule, cron, every
from svc_infra.jobs.schedules.scheduler import Scheduler

__all__ = ["Schedule", "Scheduler", "cron", "every"]
