"""The common operations in one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from svc_infra.db.database import AsyncDatabase
from svc_infra.db.sql.repository import SqlRepository, Where

M = TypeVar("M")


class DbOps:
    """The operations of `SqlRepository`, each in a unit of work of its own.

    For scripts and simple handlers. What belongs together belongs in one `db.session()`.

    Args:
        db: The database.
    """

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db

    async def get(self, model: type[M], identifier: object, *, where: Where = ()) -> M | None:
        """As `SqlRepository.get`."""
        async with self._db.session(read_only=True) as session:
            return await SqlRepository(model).get(session, identifier, where=where)

    async def get_or_404(self, model: type[M], identifier: object, *, where: Where = ()) -> M:
        """As `SqlRepository.get_or_404`."""
        async with self._db.session(read_only=True) as session:
            return await SqlRepository(model).get_or_404(session, identifier, where=where)

    async def list(
        self,
        model: type[M],
        *,
        where: Where = (),
        order_by: Sequence[Any] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> list[M]:
        """As `SqlRepository.list`."""
        async with self._db.session(read_only=True) as session:
            return await SqlRepository(model).list(session, where=where, order_by=order_by, limit=limit, offset=offset)

    async def count(self, model: type[object], *, where: Where = ()) -> int:
        """As `SqlRepository.count`."""
        async with self._db.session(read_only=True) as session:
            return await SqlRepository(model).count(session, where=where)

    async def exists(self, model: type[object], identifier: object, *, where: Where = ()) -> bool:
        """As `SqlRepository.exists`."""
        async with self._db.session(read_only=True) as session:
            return await SqlRepository(model).exists(session, identifier, where=where)

    async def create(self, model: type[M], values: Mapping[str, Any]) -> M:
        """As `SqlRepository.create`."""
        async with self._db.session() as session:
            return await SqlRepository(model).create(session, values)

    async def update(self, model: type[M], identifier: object, values: Mapping[str, Any], *, where: Where = ()) -> M:
        """As `SqlRepository.update`."""
        async with self._db.session() as session:
            return await SqlRepository(model).update(session, identifier, values, where=where)

    async def delete(self, model: type[object], identifier: object, *, where: Where = ()) -> None:
        """As `SqlRepository.delete`."""
        async with self._db.session() as session:
            await SqlRepository(model).delete(session, identifier, where=where)
