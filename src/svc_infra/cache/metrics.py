"""What each cache did, counted in plain numbers and read when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from svc_infra.cache.cache import Cache

_COUNTERS = {
    "misses": "Results that had to be computed, or keys that were not found.",
    "stale": "Results given out after their time.",
    "refreshes": "Results computed behind the caller's back.",
    "lock_waits": "Calls that waited for another one that was computing the same.",
}


class Stats:
    """The counts of one function, or of the keys that are used directly.

    Plain additions, so that a hit costs next to nothing; threads may lose one of two that happen at once.
    """

    __slots__ = ("errors", "hits", "lock_waits", "misses", "name", "refreshes", "shared_hits", "stale", "told")

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = self.shared_hits = self.misses = self.stale = self.refreshes = self.lock_waits = 0
        self.errors: Counter[str] = Counter()
        self.told = False  # whether the log knows that its results cannot be stored


class CacheCollector(Collector):
    """Shows the counts of one cache to Prometheus.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def describe(self) -> Iterable[Metric]:
        """Every metric, without values."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now."""
        stats, memory = self._cache.all_stats(), self._cache.memory
        hits = CounterMetricFamily("cache_hits", "Results found, by level.", labels=["cache", "level"])
        errors = CounterMetricFamily("cache_errors", "What went wrong and was survived.", labels=["cache", "kind"])
        for one in stats:
            hits.add_metric([one.name, "memory"], one.hits)
            hits.add_metric([one.name, "shared"], one.shared_hits)
            for kind, count in one.errors.copy().items():
                errors.add_metric([one.name, kind], count)
        yield hits
        yield errors
        for name, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"cache_{name}", help_text, labels=["cache"])
            for one in stats:
                counter.add_metric([one.name], getattr(one, name))
            yield counter
        yield CounterMetricFamily("cache_evictions", "Entries put out for lack of room.", value=memory.evictions)
        yield GaugeMetricFamily("cache_memory_entries", "Entries in process memory.", value=len(memory.entries))
        yield GaugeMetricFamily("cache_memory_bytes", "Their size as stored.", value=memory.bytes)
        if self._cache.is_shared:
            up = GaugeMetricFamily("cache_shared_up", "Whether Redis answers.", value=float(self._cache.is_connected))
            yield up
