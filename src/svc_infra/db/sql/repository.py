"""The common operations on one model, each in the unit of work that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from svc_infra.errors import ConfigurationError, NotFoundError, ValidationError

MAX_LIMIT = 1000
"""Most rows of one `list`."""

M = TypeVar("M")

Where = Sequence[ColumnElement[bool]]


class SqlRepository(Generic[M]):
    """Reads and writes the rows of one model.

    Every method takes the unit of work first. `where` narrows what a method can see: what it excludes does not exist.

    Args:
        model: A mapped class.
        id_attr: The attribute that names one row.

    Raises:
        ConfigurationError: The class is not mapped or has no such attribute.
    """

    def __init__(self, model: type[M], *, id_attr: str = "id") -> None:
        mapper = inspect(model, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise ConfigurationError(f"{model.__name__} is not a mapped class.")
        self.model = model
        self.id_attr = id_attr
        self.attributes = frozenset(mapper.column_attrs.keys())
        self.id = self.column(id_attr)

    def column(self, name: str) -> InstrumentedAttribute[Any]:
        """The model's column attribute of this name.

        Raises:
            ConfigurationError: It has none.
        """
        if name not in self.attributes:
            raise ConfigurationError(f"{self.model.__name__} has no column {name!r}.")
        attribute: InstrumentedAttribute[Any] = getattr(self.model, name)
        return attribute

    async def get(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> M | None:
        """The row, or None."""
        return await session.scalar(self._select(where).where(self.id == identifier))

    async def get_or_404(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> M:
        """The row.

        Raises:
            NotFoundError: There is none.
        """
        row = await self.get(session, identifier, where=where)
        if row is None:
            raise NotFoundError(self.model.__name__, identifier)
        return row

    async def list(
        self,
        session: AsyncSession,
        *,
        where: Where = (),
        order_by: Sequence[Any] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> list[M]:
        """A page of rows.

        Args:
            session: The unit of work.
            where: Conditions that all hold.
            order_by: Columns or expressions; ties are broken by the id, so pages do not overlap.
            limit: Most rows, up to `MAX_LIMIT`.
            offset: Rows to skip.

        Raises:
            ValidationError: The limit or the offset is out of range.
        """
        if not 0 <= limit <= MAX_LIMIT or offset < 0:
            raise ValidationError(f"limit must be 0 to {MAX_LIMIT} and offset 0 or more.")
        page = self._select(where).order_by(*order_by, self.id).limit(limit).offset(offset)
        return list((await session.scalars(page)).all())

    async def count(self, session: AsyncSession, *, where: Where = ()) -> int:
        """How many rows there are."""
        counted = select(func.count()).select_from(self.model).where(*where)
        return await session.scalar(counted) or 0

    async def exists(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> bool:
        """Whether there is such a row."""
        return await session.scalar(select(self.id).where(self.id == identifier, *where)) is not None

    async def create(self, session: AsyncSession, values: Mapping[str, Any]) -> M:
        """Store a new row.

        Raises:
            ValidationError: A value is for no column of the model.
            ConflictError: When the unit of work ends: the row contradicts what is stored.
        """
        self._check(values)
        row = self.model(**values)
        session.add(row)
        await session.flush()
        return row

    async def update(
        self, session: AsyncSession, identifier: object, values: Mapping[str, Any], *, where: Where = ()
    ) -> M:
        """Change a row's values; the others stay.

        Raises:
            NotFoundError: There is no such row.
            ValidationError: A value is for no column of the model, or for its id.
        """
        self._check(values)
        if self.id_attr in values:
            raise ValidationError(f"{self.id_attr} cannot be changed.")
        row = await self.get_or_404(session, identifier, where=where)
        for name, value in values.items():
            setattr(row, name, value)
        await session.flush()
        return row

    async def delete(self, session: AsyncSession, identifier: object, *, where: Where = ()) -> None:
        """Delete a row.

        Raises:
            NotFoundError: There is no such row.
        """
        await session.delete(await self.get_or_404(session, identifier, where=where))
        await session.flush()

    def _select(self, where: Where) -> Select[M]:
        return select(self.model).where(*where)

    def _check(self, values: Mapping[str, Any]) -> None:
        if unknown := values.keys() - self.attributes:
            raise ValidationError(f"{self.model.__name__} has no {', '.join(sorted(unknown))}.")
