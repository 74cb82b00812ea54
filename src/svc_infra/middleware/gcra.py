"""The generic cell rate algorithm: how much of a rate is used up, in one number for each key.

Source: ITU-T I.371, annex A; as a rate limiter: Brandur Leach, "Rate Limiting, Cells, and GCRA" (2015).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from svc_infra.errors import ConfigurationError

_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})?\s*(s|m|h|d|second|minute|hour|day)s?\s*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` at once, and on average at most `limit` in each `period_seconds`."""

    limit: int
    period_seconds: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read a rate such as `100/minute`, `5/s` or `1000/15 minutes`.

        Raises:
            ConfigurationError: It is no rate, or allows nothing.
        """
        match = _RATE.fullmatch(text)
        rate = None if match is None else cls(int(match[1]), int(match[2] or 1) * _SECONDS[match[3][0]])
        if rate is None or rate.limit == 0 or rate.period_seconds == 0:
            raise ConfigurationError(f"{text!r} is no rate: use a number above 0 per period, such as 100/minute.")
        return rate


class Verdict(NamedTuple):
    """Whether one more is allowed.

    Attributes:
        allowed: Whether it is.
        state: What to keep for the key.
        remaining: How many more are allowed at once.
        retry_after_seconds: Until one is allowed; 0 when this one is.
        reset_after_seconds: Until nothing of the rate is used up.
    """

    allowed: bool
    state: int
    remaining: int
    retry_after_seconds: float
    reset_after_seconds: float


def gcra(state: int, now_ns: int, rate: Rate) -> Verdict:
    """Decide about one more use of a key.

    Times are counted in nanoseconds times `rate.limit`, in which the interval between two uses is whole, so that
    nothing is rounded and never one too many is allowed.

    Args:
        state: What the last verdict gave; 0 for a new key.
        now_ns: The time on any clock that does not go back.
        rate: The rate.
    """
    scale, interval = rate.limit * _NANOSECONDS, rate.period_seconds * _NANOSECONDS
    now, burst = now_ns * rate.limit, interval * rate.limit
    used = max(state - now, 0)
    excess = used + interval - burst
    if excess > 0:
        return Verdict(False, state, 0, excess / scale, used / scale)
    used += interval
    return Verdict(True, now + used, (burst - used) // interval, 0.0, used / scale)
