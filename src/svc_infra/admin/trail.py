"""Searching the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, CompoundSelect, and_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.security.audit import AuditEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailQuery:
    """Which entries are wanted.

    Attributes:
        actor_id: Who did it, as themselves or as somebody else.
        acting_as: As whom.
        target: To what, such as `user:<id>`.
        subject_id: A user of whom the entry tells in whatever way: who did it, as whom, or to whom.
        action: What was done; with a dot at its end, everything that begins so.
        outcome: Whether it was done or refused.
        tenant_id: In whose chain; empty for the service's own, None for every chain.
        since, until: When: from the first on, and before the second.
        before: The id of the last entry of the page before.
        limit: How many at most.
    """

    actor_id: str | None = None
    acting_as: str | None = None
    target: str | None = None
    subject_id: str | None = None
    action: str | None = None
    outcome: str | None = None
    tenant_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: UUID | None = None
    limit: int = 50


async def find_entries(session: AsyncSession, query: TrailQuery) -> list[AuditEntry]:
    """The entries that match, the newest first; one more than the limit where there are more."""
    wanted = select(AuditEntry).where(*_wanted(query))
    if query.subject_id is not None:
        wanted = select(AuditEntry).where(AuditEntry.id.in_(_about(query.subject_id, query)))
    return list(await session.scalars(wanted.order_by(AuditEntry.id.desc()).limit(query.limit + 1)))


def _about(subject: str, query: TrailQuery) -> CompoundSelect[UUID]:
    """The newest entries of each way to tell of a user: by a condition with `OR` the database would read them all."""
    entry = AuditEntry
    ways = (entry.actor_id == subject, _acting_as(subject), entry.target == f"user:{subject}")
    newest = (
        select(entry.id).where(*_wanted(query), way).order_by(entry.id.desc()).limit(query.limit + 1).subquery()
        for way in ways
    )
    return union_all(*(select(some.c.id) for some in newest))


def _acting_as(user_id: str) -> ColumnElement[bool]:
    """That somebody acted as this user; said in the words of the index, which has only such entries."""
    return and_(AuditEntry.acting_as == user_id, AuditEntry.acting_as != "")


def _wanted(query: TrailQuery) -> Iterator[ColumnElement[bool]]:
    entry = AuditEntry
    for column, value in (
        (entry.actor_id, query.actor_id),
        (entry.target, query.target),
        (entry.outcome, query.outcome),
        (entry.tenant_id, query.tenant_id),
    ):
        if value is not None:
            yield column == value
    if query.acting_as is not None:
        yield _acting_as(query.acting_as)
    if query.action is not None:
        is_beginning = query.action.endswith(".")
        yield entry.action.startswith(query.action, autoescape=True) if is_beginning else entry.action == query.action
    if query.since is not None:
        yield entry.at >= query.since
    if query.until is not None:
        yield entry.at < query.until
    if query.before is not None:
        yield entry.id < query.before
