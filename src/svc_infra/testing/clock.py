"""Time that moves when it is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2030, 1, 1, tzinfo=UTC)


class FakeClock:
    """A `Clock` that stands still.

    Args:
        start: Aware; the first second of 2030 in UTC by default.
    """

    def __init__(self, start: datetime = START) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The time that it shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move it; backwards too, as clocks sometimes do."""
        self._now += timedelta(seconds=seconds)
