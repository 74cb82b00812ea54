"""Seals everything anew with the newest key, so that the one before it can go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Column, Table, Text, inspect, select, tuple_, type_coerce, update
from sqlalchemy.orm import DeclarativeBase

from svc_infra.db.database import AsyncDatabase
from svc_infra.security.cipher.cipher import EncryptedField, FieldCipher

BATCH_ROWS = 500
"""Rows that one transaction seals anew."""


class _Sealed(NamedTuple):
    column: Column[Any]
    cipher: FieldCipher
    context: Callable[[Any], str]


class SealedColumns:
    """The columns of one app that hold sealed values: those of the type `EncryptedField`, and those that rooms name.

    Args:
        cipher: The app's own, which encrypted columns use.
    """

    def __init__(self, cipher: FieldCipher) -> None:
        self._cipher = cipher
        self._named: dict[str, _Sealed] = {}

    def add(self, column: Any, cipher: FieldCipher, context: Callable[[Any], str]) -> None:
        """Name a column whose values code seals by itself.

        Args:
            column: A mapped attribute; its table has one primary key column.
            cipher: What seals it.
            context: The context of a row, given its primary key.
        """
        [table_column] = column.property.columns
        self._named[str(table_column)] = _Sealed(table_column, cipher, context)

    async def rotate(self, db: AsyncDatabase) -> dict[str, int]:
        """Seal every value anew that an older key has sealed; what changes meanwhile is left to whoever changes it.

        Returns:
            How many, by column.

        Raises:
            ConfigurationError: A value was sealed with a key that is not here; nothing of its batch was changed.
        """
        columns = {**self._named, **{str(one.column): one for one in self._encrypted()}}
        async with db.session(read_only=True) as session:
            here = set(await (await session.connection()).run_sync(lambda one: inspect(one).get_table_names()))
        wanted = {name: one for name, one in sorted(columns.items()) if one.column.table.name in here}
        return {name: await _rotated(db, sealed) for name, sealed in wanted.items()}

    def _encrypted(self) -> Iterator[_Sealed]:
        for base in DeclarativeBase.__subclasses__():
            for table in base.metadata.tables.values():
                for column in table.columns:
                    if isinstance(kind := column.type, EncryptedField):
                        yield _Sealed(column, self._cipher, lambda _, kind=kind: kind.context)  # type: ignore[misc]


async def _rotated(db: AsyncDatabase, sealed: _Sealed) -> int:
    column, cipher, context = sealed
    table, raw = column.table, type_coerce(column, Text)
    assert isinstance(table, Table)  # noqa: S101 - a column of a mapped table
    keys = list(table.primary_key.columns)
    changed, last = 0, None
    while True:
        async with db.session() as session:
            wanted = select(raw, *keys).where(column.is_not(None)).order_by(*keys).limit(BATCH_ROWS)
            if last is not None:
                wanted = wanted.where(tuple_(*keys) > tuple_(*last))
            rows = (await session.execute(wanted)).all()
            for value, *key in rows:
                anew = cipher.resealed(value, context=context(key[0]))
                if anew != value:
                    same = [one == part for one, part in zip(keys, key, strict=True)]
                    await session.execute(
                        update(table).where(*same, raw == value).values({column.name: type_coerce(anew, Text)})
                    )
                    changed += 1
        if len(rows) < BATCH_ROWS:
            return changed
        last = rows[-1][1:]
