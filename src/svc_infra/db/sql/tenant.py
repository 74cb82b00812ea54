"""The common operations on one model, for one tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.sql.repository import SqlRepository, Where
from svc_infra.errors import TenantRequiredError, ValidationError

M = TypeVar("M")


class TenantSqlService(Generic[M]):
    """A repository that knows only one tenant's rows: another tenant's row does not exist, and no row changes tenant.

    Args:
        repo: The model's repository.
        tenant_id: The tenant.
        tenant_field: The attribute of the model that holds it.

    Raises:
        TenantRequiredError: The tenant id is empty.
        ConfigurationError: The model has no such attribute.
    """

    def __init__(self, repo: SqlRepository[M], *, tenant_id: str, tenant_field: str = "tenant_id") -> None:
        if not tenant_id:
            raise TenantRequiredError("A tenant's data was asked for without a tenant id.")
        self.repo = repo
        self.tenant_id = tenant_id
        self.tenant_field = tenant_field
        self._own = repo.column(tenant_field) == tenant_id

    async def get(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> M | None:
        """As `SqlRepository.get`."""
        return await self.repo.get(session, identifier, where=self._scoped(where))

    async def get_or_404(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> M:
        """As `SqlRepository.get_or_404`."""
        return await self.repo.get_or_404(session, identifier, where=self._scoped(where))

    async def list(
        self,
        session: AsyncSession,
        *,
        where: Where = (),
        order_by: Sequence[Any] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> list[M]:
        """As `SqlRepository.list`."""
        return await self.repo.list(session, where=self._scoped(where), order_by=order_by, limit=limit, offset=offset)

    async def count(self, session: AsyncSession, *, where: Where = ()) -> int:
        """As `SqlRepository.count`."""
        return await self.repo.count(session, where=self._scoped(where))

    async def exists(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> bool:
        """As `SqlRepository.exists`."""
        return await self.repo.exists(session, identifier, where=self._scoped(where))

    async def create(self, session: AsyncSession, values: Mapping[str, Any]) -> M:
        """As `SqlRepository.create`, in the tenant.

        Raises:
            ValidationError: The values name a tenant, even this one.
        """
        self._refuse_tenant(values)
        return await self.repo.create(session, {**values, self.tenant_field: self.tenant_id})

    async def update(
        self, session: AsyncSession, identifier: object, values: Mapping[str, Any], *, where: Where = ()
    ) -> M:
        """As `SqlRepository.update`.

        Raises:
            ValidationError: The values name a tenant, even this one.
        """
        self._refuse_tenant(values)
        return await self.repo.update(session, identifier, values, where=self._scoped(where))

    async def delete(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> None:
        """As `SqlRepository.delete`."""
        await self.repo.delete(session, identifier, where=self._scoped(where))

    def _scoped(self, where: Where) -> Where:
        return (self._own, *where)

    def _refuse_tenant(self, values: Mapping[str, Any]) -> None:
        if self.tenant_field in values:
            raise ValidationError(f"{self.tenant_field} cannot be set: a row belongs to the tenant that makes it.")
