"""SQL: one transaction for rows, jobs, events and audit.

- `database`: `AsyncDatabase`, its units of work
- `columns`: column types, mixins and the base of the library's own tables
- `errors`: what a database refuses, as the library's errors
- `outbox`: messages written in the caller's transaction and relayed after it
- `operations`: `DbOps`, the common operations in one line each
- `sql`: repositories, tenant-scoped services, migrations
- `http`: `get_db`, `DbSession` · `add`: `add_db`
"""

from svc_infra.db.database import AsyncDatabase

__all__ = ["AsyncDatabase"]
