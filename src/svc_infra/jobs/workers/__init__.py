"""What runs jobs.

- `worker`: claims jobs, keeps no more than it can run, drains · `attempt`: one job in its hands
- `runner`: runs one attempt and rules on its end · `completions`: tells the queue of many at once
- `report`: what is told of an attempt that is over
- `heartbeat`: keeps the leases, whatever handlers do to the event loop
- `threads`, `processes`: functions that are no coroutines; `child` is what such a process runs
"""

from svc_infra.jobs.workers.worker import Worker

__all__ = ["Worker"]
