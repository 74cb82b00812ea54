"""SQL: one transaction for rows, jobs, events and audit.

- `database`: `AsyncDatabase` · `unit_of_work`: what its sessions are, `after_commit`, `write_last`
- `_sqlite`, `_postgres`: the engines · `pool`: their connections · `errors`: what they refuse, as the library's errors
- `columns`: column types, mixins and the base of the library's own tables
- `outbox`: messages written in the caller's transaction · `relay`: hands them on · `inbox`: each one once
- `models`: the tables of the outbox and the inbox · `migrations`: the revisions of all the library's tables
- `sql`: repositories, the common operations, tenant-scoped services, migrating
- `http`: `get_db`, `DbSession`, `ReadSession` · `add`: `add_db`
"""

from svc_infra.db.database import AsyncDatabase
from svc_infra.db.inbox import Inbox
from svc_infra.db.outbox import Outbox, OutboxMessage
from svc_infra.db.relay import OutboxRelay
from svc_infra.db.sql.operations import DbOps
from svc_infra.db.unit_of_work import after_commit, write_last

__all__ = [
    "AsyncDatabase", "DbOps", "Inbox", "Outbox", "OutboxMessage", "OutboxRelay", "after_commit", "write_last",
]  # fmt: skip
