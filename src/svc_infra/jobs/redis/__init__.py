"""Jobs in Redis or Valkey.

- `queue`: `RedisJobQueue` · `claims`: how workers get jobs
- `scripts`: the steps, in `lua` · `hashes`: how a job is kept
- `gather`: the calls of one moment as one command
"""

from svc_infra.jobs.redis.queue import RedisJobQueue

__all__ = ["RedisJobQueue"]
