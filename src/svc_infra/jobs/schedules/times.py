"""Points in time that repeat: the same ones whoever asks and whenever."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Protocol

from cronsim import CronSim

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOWS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))
_MINUTE = timedelta(minutes=1)


class Times(Protocol):
    """Points in time, the same ones whoever asks and whenever."""

    def following(self, moment: datetime) -> datetime | None:
        """The first one after a moment; None when there is none."""
        ...

    def latest(self, after: datetime, until: datetime, limit: int = 1) -> list[datetime]:
        """The last ones after `after` and not after `until`, at most `limit` of them, oldest first."""
        ...

    def count(self, after: datetime, until: datetime, limit: int) -> int:
        """How many there are after `after` and not after `until`; `limit` when there are as many or more."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """The whole multiples of a step since 1970."""

    step: timedelta

    def following(self, moment: datetime) -> datetime:
        """See `Times.following`."""
        return self._at(self._number(moment) + 1)

    def latest(self, after: datetime, until: datetime, limit: int = 1) -> list[datetime]:
        """See `Times.latest`."""
        last = self._number(until)
        return [self._at(number) for number in range(max(self._number(after), last - limit) + 1, last + 1)]

    def count(self, after: datetime, until: datetime, limit: int) -> int:
        """See `Times.count`."""
        return min(max(0, self._number(until) - self._number(after)), limit)

    def _number(self, moment: datetime) -> int:
        return (moment - EPOCH) // self.step

    def _at(self, number: int) -> datetime:
        return EPOCH + number * self.step


@dataclass(frozen=True, slots=True)
class Once:
    """One point in time."""

    moment: datetime

    def following(self, moment: datetime) -> datetime | None:
        """See `Times.following`."""
        return self.moment if moment < self.moment else None

    def latest(self, after: datetime, until: datetime, limit: int = 1) -> list[datetime]:
        """See `Times.latest`."""
        return [self.moment][:limit] if after < self.moment <= until else []

    def count(self, after: datetime, until: datetime, limit: int) -> int:
        """See `Times.count`."""
        return len(self.latest(after, until, limit))


@dataclass(frozen=True, slots=True)
class Cron:
    """The times that a cron expression names, by the clocks of a time zone.

    Where the clocks skip an hour, a time in it happens right after; where they repeat one, it happens once (Debian's
    cron does the same). Expressions with `*` in the hour or minute follow elapsed time: they have no times in an hour
    that is skipped, and twice as many in one that is repeated.
    """

    expression: str
    zone: tzinfo

    def following(self, moment: datetime) -> datetime | None:
        """See `Times.following`."""
        return next(self._after(moment), None)

    def latest(self, after: datetime, until: datetime, limit: int = 1) -> list[datetime]:
        """See `Times.latest`. Looks back in growing steps, so that a long pause costs no walk through all of it."""
        for window in (*_WINDOWS, max(until - after, _MINUTE)):
            since = max(after, until - window)
            found = deque(self._between(since, until), limit)
            if len(found) == limit or since == after:
                return list(found)
        return []

    def count(self, after: datetime, until: datetime, limit: int) -> int:
        """See `Times.count`."""
        return sum(1 for _ in islice(self._between(after, until), limit))

    def _between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        return takewhile(lambda moment: moment <= until, self._after(after))

    def _after(self, moment: datetime) -> Iterator[datetime]:
        for found in self._walk(moment.astimezone(self.zone)):
            if found > moment:
                moment = found
                yield found

    def _walk(self, local: datetime) -> Iterator[datetime]:
        """Go along the clock's face, which knows no time zone, and find out when each of its times really is."""
        minute, hour = self.expression.split()[-5:-3]
        elapsed = minute.startswith("*") or hour.startswith("*")
        second_pass: deque[datetime] = deque()
        for face in CronSim(self.expression, local.replace(tzinfo=None) - _repeated(local)):
            if moments := self._moments(face) if elapsed else self._moments(self._existing(face))[:1]:
                while second_pass and second_pass[0] < moments[0]:
                    yield second_pass.popleft()
                yield moments[0]
                second_pass.extend(moments[1:])
        yield from second_pass

    def _moments(self, face: datetime) -> list[datetime]:
        """When the clock shows this: once, twice, or never."""
        passes = dict.fromkeys(face.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return [moment for moment in passes if moment.astimezone(self.zone).replace(tzinfo=None) == face]

    def _existing(self, face: datetime) -> datetime:
        """What the clock shows right after the hour that it skips, for a time in that hour; else the time itself."""
        if self._moments(face):
            return face
        face = face.replace(second=0)
        while not self._moments(face):
            face += _MINUTE
        return face


def _repeated(local: datetime) -> timedelta:
    """By how much the clock is put back, for a time that it shows twice: the second pass may be yet to come."""
    offsets = [local.replace(fold=fold).utcoffset() or timedelta(0) for fold in (0, 1)]
    return max(offsets[0] - offsets[1], timedelta(0))
