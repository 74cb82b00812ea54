"""Where jobs are kept: one port, several engines.

- `checked`: what they share · `wakeup`: waking the workers of this process
- `memory` · `sql`: SQLite and PostgreSQL, with `models` and `statements` · `redis`, whose steps are in `lua`
"""

from svc_infra.jobs.backends.memory import InMemoryJobQueue
from svc_infra.jobs.backends.redis import RedisJobQueue
from svc_infra.jobs.backends.sql import SqlJobQueue

__all__ = ["InMemoryJobQueue", "RedisJobQueue", "SqlJobQueue"]
