"""How long a cached result is used, and when it is renewed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from svc_infra.errors import ConfigurationError

DEFAULT_TTL_SECONDS = 300.0
DEFAULT_LEASE_SECONDS = 5.0

Duration = float | timedelta
"""Seconds, or a timedelta."""


def seconds_of(name: str, value: Duration, *, positive: bool = True) -> float:
    """A duration in seconds.

    Raises:
        ConfigurationError: It is not finite, negative, or zero where it must be positive.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        least = "above 0" if positive else "0 or more"
        raise ConfigurationError(f"{name} is {value}; it must be finite and {least} seconds.")
    return number


@dataclass(frozen=True, slots=True)
class Policy:
    """How the results of one function are kept.

    Attributes:
        ttl_seconds: How long a result is fresh.
        negative_ttl_seconds: How long None is; 0: not at all.
        stale_while_revalidate_seconds: After that, how long it is still given out while a new one is computed behind
            the caller's back (RFC 5861, section 3).
        stale_if_error_seconds: After that, how long it is given out when computing a new one fails (section 4).
        jitter: The part of the time to live that is taken off at random, so that what came together does not go
            together.
        early: How eagerly a result is renewed before it ends; 0: never.
        share: Hand one object to every caller, also where it could be changed.
        lease_seconds: How long another process waits for one that has died while computing.
    """

    ttl_seconds: float = DEFAULT_TTL_SECONDS
    negative_ttl_seconds: float = DEFAULT_TTL_SECONDS
    stale_while_revalidate_seconds: float = 0.0
    stale_if_error_seconds: float = 0.0
    jitter: float = 0.1
    early: float = 1.0
    share: bool = False
    lease_seconds: float = DEFAULT_LEASE_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1 or not 0 <= self.early < math.inf:
            raise ConfigurationError(f"jitter is {self.jitter} and early is {self.early}: use 0 to 1, and 0 or more.")

    @property
    def stale_seconds(self) -> float:
        """How long a result may be of use after it was fresh."""
        return max(self.stale_while_revalidate_seconds, self.stale_if_error_seconds)

    def lifetime_seconds(self, value: object) -> float:
        """How long this result is to be fresh; drawn anew each time."""
        ttl = self.negative_ttl_seconds if value is None else self.ttl_seconds
        return ttl * (1.0 - self.jitter * random.random())  # noqa: S311 - it spreads load, it hides nothing

    def early_seconds(self, compute_seconds: float, left_seconds: float) -> float:
        """How long before its end this result is to be renewed; at most half of what is left.

        XFetch (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention", 2015), drawn once
        for each copy in a process instead of once for each read, so that a hit pays nothing.
        """
        if self.early == 0 or left_seconds <= 0:
            return 0.0
        drawn = -compute_seconds * self.early * math.log(1.0 - random.random())  # noqa: S311 - as above
        return min(drawn, left_seconds / 2)


def policies(
    ttl: Duration | None,
    negative_ttl: Duration | None,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    jitter: float,
    early: float,
    share: bool,
    lease_seconds: float,
) -> Callable[[float], Policy]:
    """Read the options of `cached`; gives the policy for a cache with this default time to live in seconds.

    Raises:
        ConfigurationError: One of them makes no sense.
    """
    given = None if ttl is None else seconds_of("ttl", ttl)
    negative = None if negative_ttl is None else seconds_of("negative_ttl", negative_ttl, positive=False)
    policy = Policy(
        stale_while_revalidate_seconds=seconds_of("stale_while_revalidate", stale_while_revalidate, positive=False),
        stale_if_error_seconds=seconds_of("stale_if_error", stale_if_error, positive=False),
        jitter=jitter,
        early=early,
        share=share,
        lease_seconds=seconds_of("lease_seconds", lease_seconds),
    )

    def policy_of(default_ttl_seconds: float) -> Policy:
        fresh = default_ttl_seconds if given is None else given
        return replace(policy, ttl_seconds=fresh, negative_ttl_seconds=fresh if negative is None else negative)

    return policy_of
