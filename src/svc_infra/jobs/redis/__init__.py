"""Jobs in Redis or Valkey.

- `queue`: `RedisJobQueue` · `scripts`: its steps, in `lua` · `hashes`: how a job is kept
- `gather`: the calls of one moment as one command
"""

from svc_infra.jobs.redis.queue import RedisJobQueue

__all__ = ["RedisJobQueue"]
