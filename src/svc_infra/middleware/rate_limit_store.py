"""Where rate limits are counted: the port, this process's memory, and Redis or Valkey."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from svc_infra.config import Settings
from svc_infra.errors import ConfigurationError
from svc_infra.middleware.gcra import Use, Verdict, decide, gcra
from svc_infra.redis import connect, translating

if TYPE_CHECKING:
    from redis.asyncio import Redis

MAX_KEYS = 65_536
"""Keys in memory."""
TIMEOUT_SECONDS = 0.05
"""Longest that Redis may take for a request."""


class RateLimitStore(Protocol):
    """Counts uses of keys."""

    async def take(self, uses: Sequence[Use]) -> list[Verdict]:
        """Charge every use to its key, or none when one is refused.

        Args:
            uses: Of different keys.

        Returns:
            A verdict for each. Where one is refused, those of the others say how their keys stand.
        """
        ...

    async def close(self) -> None:
        """Give back what the store has opened."""
        ...


class MemoryRateLimitStore:
    """Counts in this process only: several workers allow the rate each, and a restart forgets everything.

    Args:
        max_keys: Keys that are remembered; when more come, the one not used for longest is forgotten.
        clock_ns: A clock in nanoseconds that does not go back.
    """

    def __init__(self, *, max_keys: int = MAX_KEYS, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._max_keys = max_keys
        self._clock_ns = clock_ns
        self._states: OrderedDict[str, int] = OrderedDict()  # least recently used first; a dict finds that one slowly

    async def take(self, uses: Sequence[Use]) -> list[Verdict]:
        """Charge every use to its key, or none."""
        return self.take_now(uses)

    def take_now(self, uses: Sequence[Use]) -> list[Verdict]:
        """The same for those who cannot wait, or need not."""
        if len(uses) == 1:
            return [self.take_one(uses[0])]
        states = self._states
        verdicts = decide([states.pop(use.key, 0) for use in uses], self._clock_ns(), uses)
        for use, verdict in zip(uses, verdicts, strict=True):
            states[use.key] = verdict.state
        while len(states) > self._max_keys:
            states.popitem(last=False)
        return verdicts

    def take_one(self, use: Use) -> Verdict:
        """The same for one use, which is the usual number and takes half the time so."""
        states, key = self._states, use.key
        verdict = gcra(states.get(key, 0), self._clock_ns(), use.rate, use.cost)
        states[key] = verdict.state
        states.move_to_end(key)
        if len(states) > self._max_keys:
            states.popitem(last=False)
        return verdict

    async def close(self) -> None:
        """Nothing is open."""


class RedisRateLimitStore:
    """Counts in Redis (6.2 or newer) or Valkey, for all processes together, on the server's clock.

    A request is one call of one script, whatever the number of its uses. A key is gone once nothing of its rate is
    used up. A failover forgets what the new primary had not received.

    Args:
        client: A client, or a URL, whose client `close` closes.
        prefix: The keys begin with `{prefix}:`; the braces put them into one slot of a cluster.
        timeout_seconds: Longest that a call may take, the wait for a connection included.

    Raises:
        ConfigurationError: The URL cannot be understood.
        MissingExtraError: redis is not installed.
    """

    def __init__(
        self, client: Redis | str, *, prefix: str = "rate_limit", timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._owned = isinstance(client, str)
        self._client = connect(client, timeout_seconds=timeout_seconds) if isinstance(client, str) else client
        self._prefix = f"{{{prefix}}}:"
        self._timeout_seconds = timeout_seconds
        self._script = self._client.register_script((files("svc_infra.middleware") / "gcra.lua").read_text())

    async def take(self, uses: Sequence[Use]) -> list[Verdict]:
        """Charge every use to its key, or none.

        Raises:
            UnavailableError: The server cannot be reached, or cannot count now.
            TimeoutError: It did not answer in time; whether it has counted is not known.
            ConfigurationError: It refuses the credentials.
            SvcInfraError: It refuses the script.
        """
        keys = [self._prefix + use.key for use in uses]
        arguments = [argument for use in uses for argument in _in_microseconds(use)]
        async with asyncio.timeout(self._timeout_seconds):
            with translating():
                now, *held = await self._script(keys=keys, args=arguments)
        states = [
            (whole * use.rate.limit + part) * 1000 for use, whole, part in zip(uses, held[::2], held[1::2], strict=True)
        ]
        return decide(states, now * 1000, uses)  # as the script did, to the last digit

    async def close(self) -> None:
        """Close the client if the store has made it."""
        if self._owned:
            await self._client.aclose()


def store_of(settings: Settings) -> RateLimitStore:
    """The store that the settings ask for.

    Raises:
        ConfigurationError: `RATE_LIMIT_DRIVER` is redis, and `REDIS_URL` is not set or cannot be understood.
    """
    chosen, url = settings.rate_limit, settings.redis.url
    if chosen.driver == "memory" or (chosen.driver == "auto" and url is None):
        return MemoryRateLimitStore(max_keys=chosen.max_keys)
    if url is None:
        raise ConfigurationError("RATE_LIMIT_DRIVER is redis: set REDIS_URL to the address of Redis or Valkey.")
    return RedisRateLimitStore(url, prefix=f"rate_limit:{settings.app.name}", timeout_seconds=chosen.timeout_seconds)


def _in_microseconds(use: Use) -> tuple[int, ...]:
    """What the script wants to know; a cost that the rate never allows is told as the least one of that kind."""
    limit, period = use.rate.limit, use.rate.period_seconds * 1_000_000
    return limit, period, *divmod(min(use.cost, limit + 1) * period, limit)
