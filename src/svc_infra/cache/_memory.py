"""The first level: values in process memory, bounded by entries and by bytes.

What is put out follows S3-FIFO (Yang et al.: "FIFO queues are all you need for cache eviction", SOSP 2023): a hit only
counts, nothing moves, and what is read once does not push out what is read often.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from svc_infra.cache.codec import Codec

MAX_FREQUENCY = 3
SMALL_FRACTION = 0.1
ENTRY_OVERHEAD_BYTES = 400
"""What an entry costs beside its key and value, as measured."""
MAX_CHANGES = 4096
"""Invalidations that are remembered for the sake of results that are being computed meanwhile."""


class Tag:
    """What the entries of one tag have in common; dead once the tag is invalidated."""

    __slots__ = ("__weakref__", "dead")

    def __init__(self) -> None:
        self.dead = False


class Entry:
    """A value in memory.

    Attributes:
        value: The value, or its payload where callers could change it; then each gets a copy of their own.
        refresh_at, fresh_until, dead_at: Times of the memory's clock: when it is to be renewed, when it is stale, and
            when it is of no use at all.
        stamp: The Unix time until which it is fresh, which tells two versions of a value apart.
    """

    __slots__ = (
        "codec",
        "dead_at",
        "encoded",
        "frequency",
        "fresh_until",
        "key",
        "refresh_at",
        "size_bytes",
        "stamp",
        "tags",
        "value",
    )

    def __init__(
        self,
        key: str,
        value: Any,
        codec: Codec,
        *,
        encoded: bool = False,
        size_bytes: int = 0,
        fresh_until: float = 0.0,
        refresh_at: float = 0.0,
        dead_at: float = 0.0,
        stamp: float = 0.0,
    ) -> None:
        self.key = key
        self.value = value
        self.codec = codec
        self.encoded = encoded
        self.size_bytes = size_bytes + len(key) + ENTRY_OVERHEAD_BYTES
        self.fresh_until = fresh_until
        self.refresh_at = refresh_at
        self.dead_at = dead_at
        self.stamp = stamp
        self.tags: tuple[Tag, ...] = ()
        self.frequency = 0

    def get(self) -> Any:
        """The value, safe to change."""
        return self.codec.decode(self.value) if self.encoded else self.value

    def is_alive(self) -> bool:
        """Whether none of its tags was invalidated."""
        return not any(tag.dead for tag in self.tags)


class Memory:
    """A bounded map of entries; safe to use from any thread.

    Args:
        max_entries, max_bytes: Its bounds; 0 keeps nothing.
        clock: Seconds on a clock that does not go back.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.clock = clock
        self.entries: dict[str, Entry] = {}  # stays the same object, so that cached functions can hold on to it
        self.bytes = 0
        self.evictions = 0
        self._small: OrderedDict[str, Entry] = OrderedDict()
        self._main: OrderedDict[str, Entry] = OrderedDict()
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        self._small_bytes = 0
        self._tags: WeakValueDictionary[str, Tag] = WeakValueDictionary()
        self._changes: deque[str] = deque(maxlen=MAX_CHANGES)
        self._changed = 0
        self._lock = Lock()

    def get(self, key: str, codec: Codec) -> Entry | None:
        """The entry, if it is of any use."""
        entry = self.entries.get(key)
        if entry is None or entry.codec is not codec or self.clock() >= entry.dead_at or not entry.is_alive():
            return None
        if entry.frequency < MAX_FREQUENCY:
            entry.frequency += 1
        return entry

    def put(self, entry: Entry, tags: Iterable[str] = (), *, since: int | None = None) -> bool:
        """Keep an entry, unless it or one of its tags was invalidated since this mark."""
        tags = tuple(tags)
        with self._lock:
            if since is not None and not self.unchanged(since, (entry.key, *tags)):
                return False
            old = self._remove(entry.key)
            if entry.size_bytes > self.max_bytes or self.max_entries == 0:
                return False
            entry.tags = tuple(self._tags.setdefault(name, Tag()) for name in tags)
            entry.frequency = max(entry.frequency, 0 if old is None else old.frequency)
            self._insert(entry, old is not None or self._ghosts.pop(entry.key, self) is None)
            self._evict()
            return True

    def pop(self, key: str) -> Entry | None:
        """Take an entry out."""
        with self._lock:
            return self._remove(key)

    def add(self, key: str, by: int, codec: Codec, ttl_seconds: float) -> int:
        """Add to a counter; one that does not exist begins at 0 and lives this long.

        Raises:
            ValueError: There is something else under this key.
        """
        with self._lock:
            entry = self.entries.get(key)
            if entry is None or self.clock() >= entry.dead_at or not entry.is_alive():
                self._remove(key)
                end = self.clock() + ttl_seconds
                entry = Entry(key, 0, codec, fresh_until=end, refresh_at=end, dead_at=end)
                if entry.size_bytes <= self.max_bytes and self.max_entries:
                    self._insert(entry, False)
                    self._evict()
            if type(entry.value) is not int or entry.codec is not codec or entry.tags:
                raise ValueError(key)
            total: int = entry.value + by
            entry.value = total
            return total

    def mark(self) -> int:
        """A point in the row of invalidations; see `put`."""
        return self._changed

    def unchanged(self, since: int, names: Collection[str]) -> bool:
        """Whether none of these keys and tags was invalidated since; when that is no longer known, no."""
        missed = self._changed - since
        if missed == 0:
            return True
        if missed > len(self._changes):
            return False
        return not any(name in names for name in islice(reversed(self._changes), missed))

    def note(self, names: Collection[str]) -> None:
        """Remember that these keys and tags were invalidated."""
        with self._lock:
            self._changes.extend(names)
            self._changed += len(names)

    def forget(self, names: Collection[str]) -> None:
        """Invalidate keys and tags."""
        self.note(names)
        with self._lock:
            for name in names:
                self._remove(name)
                if (tag := self._tags.pop(name, None)) is not None:
                    tag.dead = True

    def flush(self) -> None:
        """Forget everything."""
        with self._lock:
            self._changes.clear()
            self._changed += 1  # a mark from before is now older than all that is remembered
            for entries in (self.entries, self._small, self._main, self._ghosts):
                entries.clear()
            self.bytes = self._small_bytes = 0

    def _insert(self, entry: Entry, proven: bool) -> None:
        self.entries[entry.key] = entry
        self.bytes += entry.size_bytes
        if proven:
            self._main[entry.key] = entry
        else:
            self._small[entry.key] = entry
            self._small_bytes += entry.size_bytes

    def _remove(self, key: str) -> Entry | None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size_bytes
            if self._small.pop(key, None) is not None:
                self._small_bytes -= entry.size_bytes
            else:
                del self._main[key]
        return entry

    def _evict(self) -> None:
        while len(self.entries) > self.max_entries or self.bytes > self.max_bytes:
            if not self._main or self._small_is_full():
                key, entry = self._small.popitem(last=False)
                self._small_bytes -= entry.size_bytes
                if entry.frequency > 1:
                    entry.frequency = 0
                    self._main[key] = entry
                    continue
                self._ghosts[key] = None
                if len(self._ghosts) > self.max_entries:
                    self._ghosts.popitem(last=False)
            else:
                key, entry = self._main.popitem(last=False)
                if entry.frequency > 0:
                    entry.frequency -= 1
                    self._main[key] = entry
                    continue
            del self.entries[key]
            self.bytes -= entry.size_bytes
            self.evictions += 1

    def _small_is_full(self) -> bool:
        entries, size = self.max_entries * SMALL_FRACTION, self.max_bytes * SMALL_FRACTION
        return len(self._small) > 1 and (len(self._small) > entries or self._small_bytes > size)
