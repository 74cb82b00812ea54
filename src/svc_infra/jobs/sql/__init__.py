"""Jobs in the application's own database.

- `queue`: `SqlJobQueue` · `models`: the tables · `statements`: what both databases share
- `postgres`, `postgres_steps`, `connections`: claims from known lanes, over asyncpg
- `sqlite`: steps in one transaction
"""

from svc_infra.jobs.sql.queue import SqlJobQueue

__all__ = ["SqlJobQueue"]
