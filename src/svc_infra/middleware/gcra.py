"""The generic cell rate algorithm: how much of a rate is used up, in one number for each key.

Source: ITU-T I.371, annex A; as a rate limiter: Brandur Leach, "Rate Limiting, Cells, and GCRA" (2015).
`gcra.lua` is the same algorithm for Redis and Valkey.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from svc_infra.errors import ConfigurationError

MAX_LIMIT = 999_999_999
MAX_PERIOD_SECONDS = 366 * 86_400

_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*(?:([0-9]{1,9})\s*)?(s|m|h|d|second|minute|hour|day)s?\s*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` at once, and on average at most `limit` in each `period_seconds`.

    Raises:
        ConfigurationError: It allows nothing, or more than `MAX_LIMIT`, or its period is not 1 second to 366 days.
    """

    limit: int
    period_seconds: int
    interval: int = field(init=False, repr=False, compare=False)
    """What one use takes, in nanoseconds times `limit`."""
    burst: int = field(init=False, repr=False, compare=False)
    """What `limit` uses take."""

    def __post_init__(self) -> None:
        if not 0 < self.limit <= MAX_LIMIT:
            raise ConfigurationError(f"{self} is no rate: allow 1 to {MAX_LIMIT}, such as 100/minute.")
        if not 0 < self.period_seconds <= MAX_PERIOD_SECONDS:
            raise ConfigurationError(f"{self} is no rate: its period is 1 second to 366 days, such as 100/minute.")
        object.__setattr__(self, "interval", self.period_seconds * _NANOSECONDS)
        object.__setattr__(self, "burst", self.interval * self.limit)

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read a rate such as `100/minute`, `5/s` or `1000/15 minutes`.

        Raises:
            ConfigurationError: It is no rate.
        """
        match = _RATE.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} is no rate: use a number above 0 per period, such as 100/minute.")
        return cls(int(match[1]), int(match[2] or 1) * _SECONDS[match[3][0]])


class Verdict(NamedTuple):
    """Whether a use of a key is allowed; times are in nanoseconds times the rate's limit.

    Attributes:
        allowed: Whether it is.
        state: What to keep for the key.
        used: How much of the rate's burst is used up.
        excess: How long it takes until this use is allowed; 0 when it is. A use above the rate's limit never is.
        rate: The rate.
    """

    allowed: bool
    state: int
    used: int
    excess: int
    rate: Rate

    def left(self) -> tuple[int, int, float]:
        """How much of the rate is left.

        Returns:
            How much more is allowed at once; the whole seconds until more than that is, 0 when nothing is used up; the
            seconds until nothing is.
        """
        _, _, used, _, rate = self
        interval, second = rate.interval, rate.limit * _NANOSECONDS
        remaining, toward_next = divmod(rate.burst - used, interval)
        return remaining, -((toward_next - interval) // second) if used else 0, used / second

    @property
    def remaining(self) -> int:
        """How much more is allowed at once."""
        return self.left()[0]

    @property
    def retry_after_seconds(self) -> float:
        """Until this use is allowed; 0 when it is."""
        return self.excess / (self.rate.limit * _NANOSECONDS)

    @property
    def reset_after_seconds(self) -> float:
        """Until nothing of the rate is used up."""
        return self.left()[2]


class Use(NamedTuple):
    """One use of a key: how much of which rate it costs."""

    key: str
    rate: Rate
    cost: int = 1


def gcra(state: int, now_ns: int, rate: Rate, cost: int = 1) -> Verdict:
    """Decide about a use of a key.

    Times are counted in nanoseconds times `rate.limit`, in which the interval between two uses is whole, so that
    nothing is rounded and never one too many is allowed.

    Args:
        state: What the last verdict gave; 0 for a new key.
        now_ns: The time on any clock. When it goes back, the key counts as used up and recovers from there.
        rate: The rate.
        cost: How many uses this one counts for; 0 to ask how things stand.
    """
    now, burst, wanted = now_ns * rate.limit, rate.burst, rate.interval * cost
    used = state - now
    if used < 0:
        used = 0
    elif used > burst:
        used = burst
    excess = used + wanted - burst
    if excess > 0:
        return Verdict(False, now + used, used, excess, rate)
    used += wanted
    return Verdict(True, now + used, used, 0, rate)


def decide(states: Sequence[int], now_ns: int, uses: Sequence[Use]) -> list[Verdict]:
    """Decide about several uses that are all allowed or none: when one is refused, no key is charged.

    Args:
        states: What is kept for each use's key.
        now_ns: As for `gcra`.
        uses: Of different keys.
    """
    verdicts = [gcra(state, now_ns, use.rate, use.cost) for state, use in zip(states, uses, strict=True)]
    if all(verdict.allowed for verdict in verdicts):
        return verdicts
    return [
        gcra(state, now_ns, use.rate, 0) if verdict.allowed else verdict
        for state, use, verdict in zip(states, uses, verdicts, strict=True)
    ]
