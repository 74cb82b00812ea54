"""Repositories, tenant-scoped services and migrations.

- `repository`: `SqlRepository`, the common operations on one model · `operations`: `DbOps`, in one line each
- `tenant`: `TenantSqlService`, the same for one tenant's rows
- `migrate`: `Migrations`, `upgrade`, `pending`, `current`
"""

from svc_infra.db.sql.repository import SqlRepository
from svc_infra.db.sql.tenant import TenantSqlService

__all__ = ["SqlRepository", "TenantSqlService"]
