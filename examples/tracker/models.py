"""The tracker's own tables; the library's (accounts, jobs, webhooks) are its own business."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from svc_infra.db.columns import NAMING, HasId, HasTenant, HasTimestamps


class Priority(StrEnum):
    """How much a ticket matters."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class Status(StrEnum):
    """Whether a ticket still needs work."""

    OPEN = "open"
    CLOSED = "closed"


class Base(DeclarativeBase):
    """The base of the tracker's tables."""

    metadata = MetaData(naming_convention=NAMING)


class Project(HasId, HasTenant, HasTimestamps, Base):
    """Something that tickets are about; its counters are kept by a job."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(200))
    open_tickets: Mapped[int] = mapped_column(default=0)
    closed_tickets: Mapped[int] = mapped_column(default=0)


class Ticket(HasId, HasTenant, HasTimestamps, Base):
    """Something to do."""

    __tablename__ = "tickets"
    __table_args__ = (Index("ix_tickets_project_id_status", "project_id", "status"),)

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(300))
    description: Mapped[str] = mapped_column(Text, default="")
    priority: Mapped[str] = mapped_column(String(20), default=Priority.NORMAL)
    status: Mapped[str] = mapped_column(String(20), default=Status.OPEN)


class Import(HasId, HasTenant, HasTimestamps, Base):
    """An uploaded CSV file of tickets, and how many of its rows have become tickets."""

    __tablename__ = "imports"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    filename: Mapped[str] = mapped_column(String(200))
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    rows_total: Mapped[int]
    rows_done: Mapped[int] = mapped_column(default=0)

    @property
    def state(self) -> str:
        """`running` until every row is stored, then `finished`."""
        return "finished" if self.rows_done == self.rows_total else "running"
