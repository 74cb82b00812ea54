"""Lets the library's tables refer to the users of an app's own model instead of to `svc_users`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, inspect

from svc_infra.db.database import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.models import HasAccount, Session, User

_OURS = "svc_"


def refer_to_users(table: str) -> None:
    """In a revision of the app: make every foreign key of the library's to users one to this table.

    Call it in the revision that creates the table, which then has no rows yet; revisions of the library that come later
    follow by themselves.

    Args:
        table: The table of the app's `user_model`; its primary key is `id`.
    """
    from alembic import op  # only a migration has one

    for name, key in _references(op.get_bind(), users_table(op.get_bind())):
        with op.batch_alter_table(name) as changed:
            changed.drop_constraint(str(key["name"]), type_="foreignkey")
            changed.create_foreign_key(
                str(key["name"]), table, key["constrained_columns"], ["id"], ondelete=key["options"].get("ondelete")
            )


def users_table(connection: Connection) -> str:
    """The table that logins refer to, in this database."""
    keys = inspect(connection).get_foreign_keys(Session.__tablename__)
    return str(next(key["referred_table"] for key in keys if key["constrained_columns"] == ["user_id"]))


async def check_references(db: AsyncDatabase, user_model: type[HasAccount]) -> None:
    """Refuse to start where logins refer to other users than the app's.

    Raises:
        ConfigurationError: They do; the message says what to do.
    """
    if user_model is User:
        return
    async with db.session(read_only=True) as session:
        table = await (await session.connection()).run_sync(users_table)
    wanted = inspect(user_model).local_table.name
    if table != wanted:
        raise ConfigurationError(
            f"Logins refer to {table}, and the users are in {wanted}: call `refer_to_users({wanted!r})` of "
            "svc_infra.security.references in a revision of the app."
        )


def _references(connection: Connection, users: str) -> list[tuple[str, Any]]:
    inspector = inspect(connection)
    tables = [name for name in inspector.get_table_names() if name.startswith(_OURS)]
    return [
        (name, key) for name in tables for key in inspector.get_foreign_keys(name) if key["referred_table"] == users
    ]
