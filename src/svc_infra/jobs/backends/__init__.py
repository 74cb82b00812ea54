"""What every queue shares, and the one that keeps jobs in memory; `sql` and `redis` beside this room are the others.

- `checked`: every argument is checked in one place · `turns`: whose job is next · `wakeup`: workers of this process
- `memory`: the queue of one process · `entry`: a job in it · `waiting`: where jobs wait
"""

from svc_infra.jobs.backends.memory import InMemoryJobQueue

__all__ = ["InMemoryJobQueue"]
