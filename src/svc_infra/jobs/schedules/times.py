"""Points in time that repeat: the same ones whoever asks and whenever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from cronsim import CronSim

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOWS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))


class Times(Protocol):
    """Points in time, the same ones whoever asks and whenever."""

    def following(self, moment: datetime) -> datetime | None:
        """The first one after a moment; None when there is none."""
        ...

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last one after `after` and not after `until`; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """The whole multiples of a step since 1970."""

    step: timedelta

    def following(self, moment: datetime) -> datetime:
        """See `Times.following`."""
        return EPOCH + ((moment - EPOCH) // self.step + 1) * self.step

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """See `Times.latest`."""
        last = EPOCH + (until - EPOCH) // self.step * self.step
        return last if last > after else None


@dataclass(frozen=True, slots=True)
class Cron:
    """The times that a cron expression names, by the clocks of a time zone.

    Where the clocks skip an hour, a time in it happens right after; where they repeat one, it happens once (Debian's
    cron does the same); expressions with `*` in the hour or minute follow elapsed time.
    """

    expression: str
    zone: tzinfo

    def following(self, moment: datetime) -> datetime | None:
        """See `Times.following`."""
        return next(self._after(moment), None)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """See `Times.latest`. Looks back in growing steps, so that a long pause costs no walk through all of it."""
        for window in (*_WINDOWS, until - after):
            since = max(after, until - window)
            last = None
            for moment in self._after(since):
                if moment > until:
                    break
                last = moment
            if last is not None or since == after:
                return last
        return None

    def _after(self, moment: datetime) -> Iterator[datetime]:
        for local in CronSim(self.expression, moment.astimezone(self.zone)):
            found = local.astimezone(UTC)
            if found > moment:  # inside a repeated hour the walk begins with its first pass
                yield found
