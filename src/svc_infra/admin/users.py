"""Searching the accounts of an app."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import String, cast, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.models import HasAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQuery:
    """Which accounts are wanted.

    Attributes:
        text: A part of the address, in any case; a user's whole id finds that user.
        role: A role that they have.
        is_active: Whether they can be used; None for both.
        after: The id of the last one of the page before.
        limit: How many at most.
    """

    text: str = ""
    role: str | None = None
    is_active: bool | None = None
    after: UUID | None = None
    limit: int = 50


async def find_users(session: AsyncSession, model: type[HasAccount], query: UserQuery) -> list[HasAccount]:
    """The accounts that match, in the order in which they were made; one more than the limit where there are more."""
    wanted = select(model)
    if query.text:
        found = model.email.icontains(query.text, autoescape=True)
        wanted = wanted.where(found if (user_id := as_id(query.text)) is None else found | (model.id == user_id))
    if query.role is not None:  # a name of a role has no quotes, so as JSON it is found in no other
        wanted = wanted.where(cast(model.roles, String).contains(f'"{query.role}"', autoescape=True))
    if query.is_active is not None:
        wanted = wanted.where(model.is_active.is_(query.is_active))
    if query.after is not None:
        wanted = wanted.where(model.id > query.after)
    return list(await session.scalars(wanted.order_by(model.id).limit(query.limit + 1)))


def as_id(text: str) -> UUID | None:
    """An account's id in its one spelling, or None for any other text."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None
