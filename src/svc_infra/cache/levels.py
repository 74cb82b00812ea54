"""The two levels of a cache as one: what is read from the second fills the first, and no faster than is safe."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from svc_infra.cache._memory import Entry, Memory
from svc_infra.cache._redis import Shared
from svc_infra.cache.codec import Codec, Stored, codec_of, is_immutable
from svc_infra.cache.metrics import Stats
from svc_infra.cache.policy import Policy
from svc_infra.errors import SvcInfraError

OUTAGE_TTL_SECONDS = 5.0
"""How long memory is believed while nobody can say what other processes invalidate."""

CLOSE_SECONDS = 5.0
"""How long what runs in the background may take to end when the cache is closed."""

EXACT = Policy(jitter=0.0, early=0.0)
"""How values are kept that the application stores itself."""

T = TypeVar("T")

_DIGITS = re.compile(rb"-?[0-9]+")
_COUNTER_LIMIT = 2**63
_ANY = codec_of(Any)


class Levels:
    """Memory, and what all processes share.

    Args:
        memory: The first level.
        shared: The second level; None when there is none.
        memory_ttl_seconds: Longest life of what the first level has from the second.
        wall: The Unix time.
    """

    def __init__(
        self, memory: Memory, shared: Shared | None, *, memory_ttl_seconds: float, wall: Callable[[], float]
    ) -> None:
        self.memory = memory
        self.shared = shared
        self.memory_ttl_seconds = memory_ttl_seconds
        self.wall = wall
        self.loop: asyncio.AbstractEventLoop | None = None  # where the coroutines of this cache run
        self.background: set[asyncio.Task[Any]] = set()

    def attach(self) -> None:
        """Work in the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.loop = loop
            self.background.clear()
            if self.shared is not None:
                self.shared.attach()

    def is_here(self) -> bool:
        """Whether this runs in the cache's event loop."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    async def close(self) -> None:
        """Let what runs in the background end, stop what does not, and close every connection."""
        self.loop = None  # nothing more is renewed
        loop = asyncio.get_running_loop()
        for is_late in (False, True):
            for task in list(self.background) if is_late else ():
                task.cancel()
            end = loop.time() + CLOSE_SECONDS
            while self.background and loop.time() < end:  # also what ends by giving something back, such as a lease
                await asyncio.wait(list(self.background), timeout=end - loop.time())
        if self.shared is not None:
            await self.shared.close()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something in the background, until `close`."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    async def settled(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish this even when the caller is cancelled meanwhile: half an invalidation is none."""
        return await asyncio.shield(self.spawn(work))

    # ------------------------------------------------------------------------------------------------------- entries

    def read(
        self,
        key: str,
        codec: Codec,
        policy: Policy,
        stats: Stats,
        raw: bytes | None,
        tokens: Mapping[str, bytes | None],
    ) -> tuple[Entry, Any] | None:
        """What the second level has, as an entry and its value; None when it is of no use.

        Args:
            raw: The bytes under this key.
            tokens: What the tags are now; a value whose tags had other tokens, or others than these, is invalidated.
        """
        if raw is None:
            return None
        stored = Stored.unpack(raw)
        try:
            if stored is None or stored.identity != codec.identity:
                raise ValueError("of another format or type")
            if stored.fresh_until + policy.stale_seconds <= self.wall() or stored.tags != tokens:
                return None
            value = codec.decode(stored.payload)
        except ValueError:
            stats.errors["undecodable"] += 1
            return None
        return self.made(key, codec, policy, stored, value), value

    def made(self, key: str, codec: Codec, policy: Policy, stored: Stored, value: Any) -> Entry:
        """The entry of a value that is stored so."""
        left = stored.fresh_until - self.wall()
        fresh_until = self.memory.clock() + left
        share = policy.share or is_immutable(value)
        return Entry(
            key,
            value if share else stored.payload,
            codec,
            encoded=not share,
            size_bytes=len(stored.payload),
            fresh_until=fresh_until,
            refresh_at=fresh_until - policy.early_seconds(stored.seconds, left),
            dead_at=fresh_until + policy.stale_seconds,
            stamp=stored.fresh_until,
        )

    def fill(self, entry: Entry, tags: Sequence[str], since: int) -> None:
        """Put into memory what the second level has too, for as long as memory can be believed."""
        if self.shared is not None:
            is_told = self.shared.is_up and self.shared.channel.listening
            most = self.memory_ttl_seconds if is_told else OUTAGE_TTL_SECONDS
            entry.dead_at = min(entry.dead_at, self.memory.clock() + most)
            entry.refresh_at = min(entry.refresh_at, entry.dead_at)
        self.memory.put(entry, tags, since=since)

    # ----------------------------------------------------------------------------------------------- keys of the user

    async def read_many(self, shared: Shared, names: list[str], codec: Codec, stats: Stats) -> dict[str, Any]:
        """The values of these keys in the second level; nothing when it is away."""
        since, values = self.memory.mark(), {}
        try:
            found = {name: raw for name, raw in zip(names, await shared.read(names), strict=True) if raw is not None}
            tags = {name: stored.tags for name, raw in found.items() if (stored := Stored.unpack(raw))}
            wanted = list({tag for some in tags.values() for tag in some})
            tokens = dict(zip(wanted, await shared.read(wanted), strict=True))
        except SvcInfraError:
            stats.errors["shared"] += 1
            return {}
        for name, raw in found.items():
            if codec is _ANY and _DIGITS.fullmatch(raw):
                values[name] = int(raw)
                continue
            now = {tag: tokens[tag] for tag in tags.get(name, ())}
            if (read := self.read(name, codec, EXACT, stats, raw, now)) is not None:
                entry, values[name] = read
                self.fill(entry, list(now), since)
        return values

    async def write_many(
        self, values: Mapping[str, Any], codec: Codec, tags: Sequence[str], ttl_seconds: float, stats: Stats
    ) -> None:
        """Store values in both levels.

        Raises:
            ValidationError: One would come back as another value; nothing is stored.
        """
        payloads = {name: codec.encode(value) for name, value in values.items()}
        counters = {name: value for name, value in values.items() if not tags and _is_counter(value, codec)}
        until, is_current = self.wall() + ttl_seconds, True
        if self.shared is None:
            self.memory.forget(list(values))
        else:
            is_current = await self.settled(
                self._share(self.shared, payloads, counters, tags, ttl_seconds, codec, stats)
            )
        since = self.memory.mark()
        for name, payload in payloads.items():
            if is_current and (self.shared is None or name not in counters):  # others may count too
                stored = Stored(codec.identity, until, 0.0, {}, payload)
                self.fill(self.made(name, codec, EXACT, stored, values[name]), tags, since)

    async def _share(
        self,
        shared: Shared,
        payloads: Mapping[str, bytes],
        counters: Mapping[str, int],
        tags: Sequence[str],
        ttl_seconds: float,
        codec: Codec,
        stats: Stats,
    ) -> bool:
        """Store values in the second level, then forget those in memory; whether nothing was invalidated meanwhile."""
        since = self.memory.mark()
        try:
            tokens, until = await shared.tokens(tags, ttl_seconds), self.wall() + ttl_seconds
            raw = {name: Stored(codec.identity, until, 0.0, tokens, one).pack() for name, one in payloads.items()}
            await shared.write(raw | {name: str(one).encode() for name, one in counters.items()}, ttl_seconds)
        except SvcInfraError:
            stats.errors["shared"] += 1
            await shared.invalidate(list(payloads))
        finally:
            is_current = self.memory.unchanged(since, [*payloads, *tags])
            self.memory.forget(list(payloads))
        return is_current


def _is_counter(value: Any, codec: Codec) -> bool:
    return type(value) is int and codec is _ANY and abs(value) < _COUNTER_LIMIT
