"""A cache: values under keys, in process memory, in Redis, or in both."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from svc_infra.cache._memory import Memory
from svc_infra.cache._redis import RETRY_SECONDS, TIMEOUT_SECONDS, Shared
from svc_infra.cache.codec import codec_of
from svc_infra.cache.keys import shortened
from svc_infra.cache.levels import OUTAGE_TTL_SECONDS, Levels
from svc_infra.cache.loading import Loader
from svc_infra.cache.metrics import Stats
from svc_infra.cache.policy import DEFAULT_TTL_SECONDS, Duration, seconds_of
from svc_infra.errors import ConfigurationError, ConflictError, SvcInfraError
from svc_infra.obs.context import current
from svc_infra.types import AfterCommit, Clock

MAX_ENTRIES = 10_000
MAX_BYTES = 64 * 1024 * 1024
MEMORY_TTL_SECONDS = 60.0
"""Longest life in memory of what Redis has too: the bound on what a message that never came can do."""
MAX_STATS = 1000
"""Functions that are counted by name; more are counted together as "other"."""
MEMORY_URL = "memory://"


T = TypeVar("T")
D = TypeVar("D")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ANY = codec_of(Any)


class Cache:
    """Keeps values that can be computed again.

    With a URL there are two levels: memory, which a hit never leaves, and Redis or Valkey, which all processes share
    and through which they tell each other what is no longer true. Without one there is only memory.

    Nothing here fails because Redis is away: reads then miss, writes stay in this process for 5 seconds at most, and
    what was invalidated meanwhile is forgotten by Redis before it is used again. A process that dies before that leaves
    Redis with what it had, until that value's time to live is over.

    Keys are those of the tenant that is in context, if there is one. Use a cache in one event loop at a time, and close
    it there.

    Args:
        url: `redis://`, `valkey://` or the like (see `svc_infra.redis.connect`), or `memory://`, the default.
        namespace: Whose keys these are; services that share a server need different ones.
        version: Part of every key: another version begins empty.
        default_ttl: Time to live where none is given; seconds or a timedelta.
        max_entries, max_bytes: Bounds of the memory; without entries there is only Redis.
        memory_ttl: Longest life in memory of what Redis has too; seconds or a timedelta.
        by_tenant: Whether keys that are used directly are those of the tenant in context. Tags never are.
        after_commit: What `session=` of `delete` and `invalidate_tags` uses: `svc_infra.db.after_commit`.
        clock: Where the time comes from; the machine's clocks when left out.
        timeout_seconds: Longest wait for an answer of Redis.
        retry_seconds: How often Redis is tried while it is away.

    Raises:
        ConfigurationError: The URL, the namespace or a number cannot be used.
        MissingExtraError: redis is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "svc-infra",
        version: str = "1",
        default_ttl: Duration = DEFAULT_TTL_SECONDS,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        memory_ttl: Duration = MEMORY_TTL_SECONDS,
        by_tenant: bool = True,
        after_commit: AfterCommit | None = None,
        clock: Clock | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        for name, value in (("namespace", namespace), ("version", version)):
            if not _NAME.fullmatch(value):
                raise ConfigurationError(f"The cache's {name} is {value!r}: use letters, digits, dots and dashes.")
        if max_entries < 0 or max_bytes < 0:
            raise ConfigurationError("A cache's max_entries and max_bytes are 0 or more.")
        self.prefix = f"{namespace}:{version}:"
        self.default_ttl_seconds = seconds_of("default_ttl", default_ttl)
        self.stats = Stats("direct")
        self._by_tenant = by_tenant
        self._after_commit = after_commit
        self._wall = time.time if clock is None else lambda: clock.now().timestamp()
        self.memory = Memory(max_entries, max_bytes, time.monotonic if clock is None else self._wall)
        self._shared: Shared | None = None
        if url is not None and url != MEMORY_URL:
            self._shared = Shared(
                url,
                self.prefix,
                on_names=self._heard,
                on_gap=self.memory.flush,
                timeout_seconds=timeout_seconds,
                retry_seconds=retry_seconds,
                listen=max_entries > 0,
            )
        memory_ttl_seconds = seconds_of("memory_ttl", memory_ttl)
        self.levels = Levels(self.memory, self._shared, memory_ttl_seconds=memory_ttl_seconds, wall=self._wall)
        self.loader = Loader(self.levels)
        self._stats = {"direct": self.stats}

    async def start(self) -> None:
        """Begin to listen to the other processes; the first use does this too."""
        self.levels.attach()

    async def close(self) -> None:
        """Stop what runs in the background and close every connection; the next use begins anew."""
        await self.loader.close()
        self.memory.flush()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --------------------------------------------------------------------------------------------------------- values

    @overload
    async def get(self, key: str, default: D, *, kind: type[T]) -> T | D: ...
    @overload
    async def get(self, key: str, *, kind: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, default: Any = None, *, kind: Any = Any) -> Any: ...
    async def get(self, key: str, default: Any = None, *, kind: Any = Any) -> Any:
        """The value under a key.

        Args:
            key: The key.
            default: What to return when there is none.
            kind: What the value was stored as; see `set`. One of another kind is not found.
        """
        return (await self.get_many([key], kind=kind)).get(key, default)

    async def get_many(self, keys: Iterable[str], *, kind: Any = Any) -> dict[str, Any]:
        """The values under these keys, those that there are, in one or two round trips."""
        codec, found, missing, now = codec_of(kind), {}, {}, self.memory.clock()
        for key in keys:
            entry = self.memory.get(self._key(key), codec)
            if entry is not None and now < entry.fresh_until:
                found[key] = entry.get()
            else:
                missing[self._key(key)] = key
        self.stats.hits += len(found)
        if missing and self._shared is not None:
            self.levels.attach()
            from_redis = await self.levels.read_many(self._shared, list(missing), codec, self.stats)
            found |= {missing[name]: value for name, value in from_redis.items()}
            self.stats.shared_hits += len(from_redis)
            self.stats.misses += len(missing) - len(from_redis)
        else:
            self.stats.misses += len(missing)
        return found

    async def set(
        self, key: str, value: Any, ttl: Duration | None = None, *, tags: Iterable[str] = (), kind: Any = Any
    ) -> None:
        """Store a value for every process; what was being computed for this key is dropped.

        Args:
            key: The key.
            value: Plain (see `kind`). None is a value too.
            ttl: How long, in seconds or a timedelta; the cache's default when left out.
            tags: `invalidate_tags` with one of them forgets the value.
            kind: The value's type, where it is no plain one: a dataclass, a model, `list[UUID]`. `get` needs it too.

        Raises:
            ValidationError: The value would come back as another one; nothing is stored.
            ConfigurationError: Values of this kind cannot be stored at all.
        """
        await self.set_many({key: value}, ttl, tags=tags, kind=kind)

    async def set_many(
        self, values: Mapping[str, Any], ttl: Duration | None = None, *, tags: Iterable[str] = (), kind: Any = Any
    ) -> None:
        """Store values as `set` does, those of one call in one step."""
        if self._shared is not None:
            self.levels.attach()
        named = {self._key(key): value for key, value in values.items()}
        names = [self.tag_name(tag) for tag in tags]
        await self.levels.write_many(named, codec_of(kind), names, self._ttl(ttl), self.stats)

    async def delete(self, *keys: str, session: Any = None) -> int | None:
        """Forget keys in every process.

        Args:
            *keys: The keys.
            session: Forget them once its transaction is committed, and not if it is rolled back.

        Returns:
            How many of them there were; None when that is not known (yet).
        """
        return await self.invalidate([self._key(key) for key in keys], session=session)

    async def incr(self, key: str, by: int = 1, *, ttl: Duration | None = None) -> int:
        """Add to a whole number, which begins at 0; exact across all processes.

        While Redis is away each process counts for itself, from 0 and for 5 seconds at most.

        Args:
            key: The key; `get` without a `kind` reads it.
            by: How much; may be negative.
            ttl: How long a new one is kept; the cache's default when left out.

        Returns:
            The new number.

        Raises:
            ConflictError: There is something else under this key.
        """
        name, ttl_seconds = self._key(key), self._ttl(ttl)
        if self._shared is not None:
            self.levels.attach()
            try:
                return await self._shared.add(name, by, ttl_seconds)
            except SvcInfraError as error:
                self.stats.errors["shared"] += 1
                if self._shared.is_up:
                    raise ConflictError(f"{key} holds no whole number that can be counted.") from error
            ttl_seconds = min(ttl_seconds, OUTAGE_TTL_SECONDS)
        try:
            return self.memory.add(name, by, _ANY, ttl_seconds)
        except ValueError:
            raise ConflictError(f"{key} holds no whole number that can be counted.") from None

    async def expire(self, key: str, ttl: Duration) -> bool:
        """Let a value live this long from now.

        Returns:
            Whether there is one.
        """
        name, ttl_seconds = self._key(key), self._ttl(ttl)
        if self._shared is None:
            entry = self.memory.entries.get(name)
            if entry is None or self.memory.get(name, entry.codec) is None:
                return False
            entry.fresh_until = entry.refresh_at = entry.dead_at = self.memory.clock() + ttl_seconds
            return True
        self.levels.attach()
        expiring = self._shared.expire(name, ttl_seconds, self._wall() + ttl_seconds)
        try:
            return await self.levels.settled(self._then_forget(expiring, [name]))
        except SvcInfraError:
            self.stats.errors["shared"] += 1
            return False

    # --------------------------------------------------------------------------------------------------- invalidation

    async def invalidate_tags(self, *tags: str, session: Any = None) -> None:
        """Forget every value that has one of these tags, in every process; the cost does not grow with their number.

        Args:
            *tags: The tags, of all tenants.
            session: Do so once its transaction is committed, and not if it is rolled back.

        Raises:
            ConfigurationError: There is a session, and the cache was made without `after_commit`.
        """
        await self.invalidate([self.tag_name(tag) for tag in tags], session=session)

    async def invalidate(self, names: Sequence[str], *, session: Any = None) -> int | None:
        """Forget keys and tags by their full names, as cached functions do; otherwise like `delete`."""
        if session is not None:
            if self._after_commit is None:
                raise ConfigurationError(
                    "This cache knows no sessions: give it after_commit=svc_infra.db.after_commit."
                )
            self._after_commit(session, lambda: self.invalidate(names))
            return None
        if self._shared is None:
            before = len(self.memory.entries)
            self.memory.forget(names)
            return before - len(self.memory.entries)
        self.levels.attach()
        return await self.levels.settled(self._then_forget(self._shared.invalidate(names), names))

    async def clear(self) -> None:
        """Forget everything in this namespace and version, in time that grows with all that Redis holds."""
        if self._shared is not None:
            self.levels.attach()
            await self.levels.settled(self._then_forget(self._shared.clear(), [self.prefix]))
        self.memory.flush()

    # ------------------------------------------------------------------------------------------------------------ own

    @property
    def is_shared(self) -> bool:
        """Whether there is a second level."""
        return self._shared is not None

    @property
    def is_connected(self) -> bool:
        """Whether the second level answers."""
        return self._shared is not None and self._shared.is_up

    @property
    def is_coherent(self) -> bool:
        """Whether this process hears at once what others invalidate; it keeps things in memory only briefly if not."""
        return self._shared is not None and self._shared.channel.listening

    def all_stats(self) -> list[Stats]:
        """The counts of every cached function, and of the keys that are used directly."""
        return list(self._stats.values())

    def stats_of(self, name: str) -> Stats:
        """The counts under this name."""
        if name not in self._stats and len(self._stats) >= MAX_STATS:
            name = "other"
        return self._stats.setdefault(name, Stats(name))

    def key_name(self, key: str, tenant_id: str) -> str:
        """A key's full name; the tenant is "" for none."""
        return shortened(f"{self.prefix}k@{tenant_id!r}:{key}" if tenant_id else f"{self.prefix}k:{key}")

    def tag_name(self, tag: str) -> str:
        """A tag's full name."""
        return shortened(f"{self.prefix}t:{tag}")

    def _key(self, key: str) -> str:
        return self.key_name(key, current().tenant_id if self._by_tenant else "")

    def _ttl(self, ttl: Duration | None) -> float:
        return self.default_ttl_seconds if ttl is None else seconds_of("ttl", ttl)

    async def _then_forget(self, change: Awaitable[T], names: Sequence[str]) -> T:
        """Forget names here after Redis has, so that nothing older is read from there and kept meanwhile.

        One coroutine, for `settled`: whoever is cancelled between the two would leave the older value for its life.
        """
        try:
            return await change
        finally:
            self._heard(names)

    def _heard(self, names: Sequence[str]) -> None:
        if self.prefix in names:
            self.memory.flush()
        else:
            self.memory.forget(names)


class MemoryCache(Cache):
    """A cache in process memory: for tests and single processes; what it holds ends with the process.

    Args:
        **options: As for `Cache`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(None, **options)


class RedisCache(Cache):
    """A cache in Redis or Valkey alone: every read is a round trip, and all processes always see the same.

    Args:
        url: As for `Cache`; a server's.
        **options: As for `Cache`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, max_entries=0, **options)
