"""Whom an admin can act as: an account of the library, or what the app's own getter finds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from svc_infra.admin.impersonation.models import MAX_USER_ID_CHARACTERS
from svc_infra.admin.users import as_id
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.models import HasAccount

UserGetter = Callable[[Any, str], Awaitable[Any] | Any]
"""`(request, user_id) -> user`, plain or async. A user has an `id`, and may have `email`, `roles`, `is_active`; for one
who cannot be found, give None or raise a 404."""

_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_USER_ID_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class Target:
    """A user as whom somebody may act.

    Attributes:
        id: As text.
        email: Empty where it is not known.
        roles: Everything that they are.
    """

    id: str
    email: str
    roles: frozenset[str]


class Targets:
    """Finds users who can be acted as: nobody who is disabled.

    Args:
        db: Where the accounts are.
        user_model: The app's accounts.
        getter: The app's own way to find users; None where they are the accounts.
    """

    def __init__(self, db: AsyncDatabase, user_model: type[HasAccount], getter: UserGetter | None = None) -> None:
        self._db = db
        self._user = user_model
        self._getter = getter

    async def find(self, request: Any, user_id: str) -> Target | None:
        """The user, or None where there is none or they are disabled.

        Raises:
            ConfigurationError: The getter gave a user without an id, or with one of another form.
            Exception: Whatever the getter raises.
        """
        if self._getter is None:
            _, account = await self._account(user_id)
            return account
        given = self._getter(request, user_id)
        user = await given if inspect.isawaitable(given) else given
        if user is None or getattr(user, "is_active", True) is not True:
            return None
        found_id = str(getattr(user, "id", ""))
        if not _ID.fullmatch(found_id):
            raise ConfigurationError(
                "impersonation_user_getter gave a user without an `id` of 1 to 64 visible ASCII characters."
            )
        email, roles = getattr(user, "email", None), getattr(user, "roles", None) or ()
        own = Target(found_id, email if isinstance(email, str) else "", _names(roles))
        exists, account = await self._account(found_id)  # what else is known of them counts too
        if exists:
            return Target(own.id, own.email or account.email, own.roles | account.roles) if account else None
        return own

    async def _account(self, user_id: str) -> tuple[bool, Target | None]:
        """Whether there is such an account, and it, if it is active."""
        account_id, user = as_id(user_id), self._user
        if account_id is None:
            return False, None
        wanted = select(user.email, user.roles, user.is_active).where(user.id == account_id)
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(wanted)).one_or_none()
        if row is None or not row.is_active:
            return row is not None, None
        return True, Target(user_id, row.email, frozenset(row.roles))


def _names(roles: str | Iterable[Any]) -> frozenset[str]:
    return frozenset([roles] if isinstance(roles, str) else (str(getattr(role, "value", role)) for role in roles))
