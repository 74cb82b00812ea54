"""Shared aliases, one-method protocols and the identifiers and times that every room uses. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import uuid_utils
from uuid_utils.compat import uuid7


class Clock(Protocol):
    """Where a room reads the time from, so that a test can hold it still."""

    def now(self) -> datetime:
        """The current time, aware, in UTC."""
        ...


class AfterCommit(Protocol):
    """How to hear of a commit; the room that knows transactions provides it."""

    def __call__(self, session: Any, callback: Callable[[], Awaitable[object]], /) -> None:
        """Call back once the session's transaction is committed; never after a rollback."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The current time, aware, in UTC."""
        return datetime.now(UTC)


def new_id() -> UUID:
    """A new identifier, unique everywhere and ordered by the time it was made (UUIDv7, RFC 9562)."""
    return uuid7()


def new_id_text() -> str:
    """`new_id` as text, at a seventh of its cost."""
    return str(uuid_utils.uuid7())
