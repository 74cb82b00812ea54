"""How a cached result is found or computed: once at a time, in one process and across all of them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from svc_infra.cache._memory import Entry
from svc_infra.cache._redis import Lease, Shared
from svc_infra.cache.codec import Codec, Stored
from svc_infra.cache.levels import Levels
from svc_infra.cache.metrics import Stats
from svc_infra.cache.policy import Policy
from svc_infra.errors import SvcInfraError, ValidationError

MAX_BACKGROUND = 100
"""Results of one cache that are renewed at the same time behind the callers' backs; more wait for the next read."""
FIRST_POLL_SECONDS = 0.005
MAX_POLL_SECONDS = 0.05
ERROR_PAUSE_SECONDS = 1.0
"""How long a stale result is given out without another try after computing a new one has failed."""

Compute = Callable[[], Awaitable[Any]]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One use of a cached function.

    Attributes:
        key, tags: Names in both levels.
        compute: Gets the result for the caller who waits.
        recompute: Gets it behind the caller's back.
    """

    key: str
    tags: Sequence[str]
    codec: Codec
    policy: Policy
    stats: Stats
    compute: Compute
    recompute: Compute


class _Flight:
    """A computation that others wait for.

    Attributes:
        mark: Which invalidations were known when it began; who comes after a later one does not join.
        newer_than: The version that is to be replaced; 0 for none.
    """

    __slots__ = ("entry", "error", "loop", "mark", "names", "newer_than", "traceback", "waiters")

    def __init__(self, mark: int, names: tuple[str, ...], newer_than: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.mark = mark
        self.names = names
        self.newer_than = newer_than
        self.entry: Entry | None = None
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None
        self.waiters: list[asyncio.Future[None]] = []

    async def outcome(self) -> Entry | None:
        """What came out; None when its caller was cancelled, so that another one must compute."""
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        await waiter
        if self.error is not None:
            raise self.error.with_traceback(self.traceback)  # not one that grows with every waiter
        return self.entry

    def land(self) -> None:
        """Let the waiters go on."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class Loader:
    """Finds and computes the results of one cache.

    Args:
        levels: Where they are kept.
    """

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._memory = levels.memory
        self._shared = levels.shared
        self._flights: dict[str, _Flight] = {}

    async def close(self) -> None:
        """Stop what runs in the background, and let those who wait for it compute by themselves."""
        await self._levels.close()
        flights = list(self._flights.values())
        self._flights.clear()
        for flight in flights:
            if flight.loop is asyncio.get_running_loop():
                flight.land()

    async def serve(self, call: Call) -> Any:
        """The result: from memory, from the second level, or computed."""
        self._levels.attach()
        entry = self._memory.get(call.key, call.codec)
        if entry is not None:
            now = self._memory.clock()
            if now < entry.fresh_until + call.policy.stale_while_revalidate_seconds:
                if now < entry.fresh_until:
                    call.stats.hits += 1
                else:
                    call.stats.stale += 1
                self._renew_soon(call, entry)
                return entry.get()
        while (flight := self._flights.get(call.key)) is not None and self._may_join(flight):
            call.stats.lock_waits += 1
            entry = await flight.outcome()
            if entry is not None and entry.codec is call.codec:
                return entry.get()
        return await self._fly(call, self._begin(call, 0.0), call.compute)

    async def refresh(self, call: Call) -> Any:
        """The result, computed now whatever is kept, for every process."""
        self._levels.attach()
        self._memory.note([call.key])  # nobody joins a flight that began before
        try:
            return await self._fly(call, self._begin(call, float("inf")), call.compute)
        except asyncio.CancelledError:
            self._memory.forget([call.key])  # the new one may be where all processes look, and not here
            raise

    def serve_alone(self, call: Call, compute: Callable[[], Any]) -> Any:
        """The result, for a caller who can wait for nobody: from memory, or computed here and kept there."""
        kept = self._memory.get(call.key, call.codec)
        if kept is not None and self._memory.clock() < kept.fresh_until:
            call.stats.hits += 1
            return kept.get()
        call.stats.misses += 1
        since, started = self._memory.mark(), self._memory.clock()
        try:
            value = compute()
        except Exception as error:
            if kept is None or not self._saves(call, kept):
                raise
            self._failed(call, error)
            self._pause(kept)
            call.stats.stale += 1
            return kept.get()
        entry, stored = self._sealed(call, value, self._memory.clock() - started, {})
        if stored is not None:
            self._levels.fill(entry, call.tags, since)
        return value

    # -------------------------------------------------------------------------------------------------------- flights

    def _may_join(self, flight: _Flight) -> bool:
        """Whether this flight is one of this event loop, and nothing was invalidated since it began."""
        return flight.loop is self._levels.loop and self._memory.unchanged(flight.mark, flight.names)

    def _begin(self, call: Call, newer_than: float) -> _Flight:
        flight = _Flight(self._memory.mark(), (call.key, *call.tags), newer_than)
        self._flights[call.key] = flight
        return flight

    async def _fly(self, call: Call, flight: _Flight, compute: Compute) -> Any:
        try:
            value, flight.entry = await self._lead(call, flight, compute)
        except Exception as error:
            flight.error, flight.traceback = error, error.__traceback__
            raise
        else:
            return value
        finally:
            if self._flights.get(call.key) is flight:
                del self._flights[call.key]
            flight.land()

    def _renew_soon(self, call: Call, entry: Entry) -> None:
        """Compute a new version in the background, unless one is on its way or too many are."""
        is_open = self._levels.is_here() and len(self._levels.background) < MAX_BACKGROUND
        if is_open and call.key not in self._flights:
            self._levels.spawn(self._renew(call, entry, self._begin(call, entry.stamp)))

    async def _renew(self, call: Call, entry: Entry, flight: _Flight) -> None:
        call.stats.refreshes += 1
        try:
            await self._fly(call, flight, call.recompute)
        except Exception as error:  # noqa: BLE001 - nobody waits for it; what is kept stays until its end
            self._failed(call, error)
            self._pause(entry)

    async def _lead(self, call: Call, flight: _Flight, compute: Compute) -> tuple[Any, Entry | None]:
        kept, lease = self._memory.get(call.key, call.codec), None
        if self._shared is not None:
            try:
                found, lease = await self._consult(call, flight, self._shared)
            except SvcInfraError:
                call.stats.errors["shared"] += 1
            else:
                if found is not None and lease is None and self._serves(call, flight, found[0]):
                    self._found(call, flight, found[0])
                    return found[1], found[0]
                kept = found[0] if found is not None else kept
        if flight.newer_than == 0:
            call.stats.misses += 1
        started = self._memory.clock()
        try:
            value = await self._computed(compute, lease)
            return value, await self._store(call, flight, lease, value, self._memory.clock() - started)
        except BaseException as error:
            if lease is not None and self._shared is not None:
                self._levels.spawn(self._shared.release(lease))
            if isinstance(error, Exception) and flight.newer_than == 0 and kept is not None and self._saves(call, kept):
                self._failed(call, error)
                self._levels.fill(kept, call.tags, flight.mark)
                self._pause(kept)
                call.stats.stale += 1
                return kept.get(), kept
            raise

    async def _consult(
        self, call: Call, flight: _Flight, shared: Shared
    ) -> tuple[tuple[Entry, Any] | None, Lease | None]:
        """Ask the second level: a value that will do, or the lease to compute one and perhaps a stale one.

        Neither means that another process has been computing for too long to wait for it any more.
        """
        raw, *tokens = await shared.read([call.key, *call.tags])
        found = self._read(call, raw, dict(zip(call.tags, tokens, strict=True)))
        if found is not None and self._serves(call, flight, found[0]):
            return found, None
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + shared.lease_wait_seconds, FIRST_POLL_SECONDS
        policy, force = call.policy, flight.newer_than == float("inf")
        keep_seconds = policy.ttl_seconds + policy.stale_seconds
        while True:
            lease, raw, now = await shared.acquire(
                call.key, call.tags, seconds=policy.lease_seconds, keep_seconds=keep_seconds, force=force
            )
            found = self._read(call, raw, now)
            if found is not None and self._serves(call, flight, found[0]):
                if lease is not None:  # it was stored between the two commands
                    self._levels.spawn(shared.release(lease))
                return found, None
            if lease is not None or loop.time() >= deadline:
                return found, lease
            if pause == FIRST_POLL_SECONDS:
                call.stats.lock_waits += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
            pause = min(2 * pause, MAX_POLL_SECONDS)

    def _read(self, call: Call, raw: bytes | None, tokens: Mapping[str, bytes | None]) -> tuple[Entry, Any] | None:
        return self._levels.read(call.key, call.codec, call.policy, call.stats, raw, tokens)

    def _serves(self, call: Call, flight: _Flight, entry: Entry) -> bool:
        """Whether nothing needs to be computed now."""
        now = self._memory.clock()
        if now < entry.fresh_until:
            return entry.stamp > flight.newer_than
        return flight.newer_than == 0 and now < entry.fresh_until + call.policy.stale_while_revalidate_seconds

    def _saves(self, call: Call, entry: Entry) -> bool:
        """Whether this stale value may stand in for one that could not be computed."""
        return self._memory.clock() < entry.fresh_until + call.policy.stale_if_error_seconds

    def _found(self, call: Call, flight: _Flight, entry: Entry) -> None:
        now, due = self._memory.clock(), entry.refresh_at
        self._levels.fill(entry, call.tags, flight.mark)
        if flight.newer_than != 0:
            return
        if now < entry.fresh_until:
            call.stats.shared_hits += 1
        else:
            call.stats.stale += 1
        if now >= due:
            asyncio.get_running_loop().call_soon(self._renew_soon, call, entry)  # once this flight has landed

    async def _computed(self, compute: Compute, lease: Lease | None) -> Any:
        if lease is None or self._shared is None:
            return await compute()
        async with self._shared.renewing(lease):
            return await compute()

    async def _store(self, call: Call, flight: _Flight, lease: Lease | None, value: Any, seconds: float) -> Entry:
        entry, stored = self._sealed(call, value, seconds, {} if lease is None else lease.tags)
        if stored is None:
            if lease is not None and self._shared is not None:
                self._levels.spawn(self._shared.release(lease))
            return entry
        is_current = True
        if lease is not None and self._shared is not None:
            keep_seconds = stored.fresh_until - self._levels.wall() + call.policy.stale_seconds
            try:
                is_current = await self._shared.store(
                    lease, stored.pack(), keep_seconds, tell=flight.newer_than == float("inf")
                )
            except SvcInfraError:
                call.stats.errors["shared"] += 1
        if is_current:
            self._levels.fill(entry, call.tags, flight.mark)
        return entry

    def _sealed(self, call: Call, value: Any, seconds: float, tags: Mapping[str, bytes]) -> tuple[Entry, Stored | None]:
        """The entry of a new result, and what to store; without the latter it is only for those who wait for it."""
        only_passed_on = Entry(call.key, value, call.codec)
        lifetime = call.policy.lifetime_seconds(value)
        if lifetime <= 0:
            return only_passed_on, None
        try:
            payload = call.codec.encode(value)
        except ValidationError as error:
            call.stats.errors["not_stored"] += 1
            if not call.stats.told:
                call.stats.told = True
                _log.error("cache.result_not_stored", extra={"cache": call.stats.name}, exc_info=error)
            return only_passed_on, None
        stored = Stored(call.codec.identity, self._levels.wall() + lifetime, seconds, tags, payload)
        return self._levels.made(call.key, call.codec, call.policy, stored, value), stored

    def _failed(self, call: Call, error: Exception) -> None:
        call.stats.errors["origin"] += 1
        _log.warning("cache.origin_failed", extra={"cache": call.stats.name}, exc_info=error)

    def _pause(self, entry: Entry) -> None:
        entry.refresh_at = min(self._memory.clock() + ERROR_PAUSE_SECONDS, entry.dead_at)
