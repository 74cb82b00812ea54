"""Metrics: counters, gauges and histograms by dotted name, in a registry of each app's own, over prometheus-client."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from threading import Lock
from typing import Any

import prometheus_client

from svc_infra.errors import ConfigurationError
from svc_infra.wiring import current_wiring

MAX_SERIES = 1000
"""Most series of one metric; further label values become "other"."""
MAX_LABEL_CHARS = 128
OTHER = "other"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets of OpenTelemetry's `http.server.request.duration`; used for every metric that ends in `_seconds`."""
BYTES = tuple(float(4**power) for power in range(4, 14))
NUMBERS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Family:
    """One metric and its series, at most `max_series` of them."""

    def __init__(
        self, metric: Any, labels: tuple[str, ...], max_series: int, count_overflow: Callable[[], None]
    ) -> None:
        self._metric = metric
        self._labels = labels
        self._max_series = max_series
        self._count_overflow = count_overflow
        self._series: dict[tuple[str, ...], Any] = {}
        self._lock = Lock()

    def series(self, labels: dict[str, Any]) -> Any:
        """The counter, gauge or histogram of these label values.

        Raises:
            ConfigurationError: The label names are not those of the metric's first use.
        """
        try:
            values = tuple([str(labels[name])[:MAX_LABEL_CHARS] for name in self._labels])
        except KeyError:
            raise self._mismatch(labels) from None
        if len(labels) != len(values):
            raise self._mismatch(labels)
        return self._series.get(values) or self._new(values)

    def _new(self, values: tuple[str, ...]) -> Any:
        with self._lock:
            if values not in self._series and len(self._series) >= self._max_series - 1:
                self._count_overflow()
                values = (OTHER,) * len(values)
            if values not in self._series:
                self._series[values] = self._metric.labels(*values) if values else self._metric
            return self._series[values]

    def _mismatch(self, labels: dict[str, Any]) -> ConfigurationError:
        first, now = (", ".join(names) or "none" for names in (self._labels, labels))
        return ConfigurationError(f"The labels of {self._metric} are {first}; here they are {now}. Use the same ones.")


class Metrics:
    """The metrics of one app.

    Args:
        registry: Where they are registered; a registry of its own when left out.
        max_series: Most series of one metric.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry | None = None, *, max_series: int = MAX_SERIES):
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        self._max_series = max_series
        self._families: dict[tuple[type, str], Family] = {}
        self._lock = Lock()
        self._overflow = prometheus_client.Counter(
            "metrics_series_overflow",
            'Measurements whose label values became "other".',
            ["metric"],
            registry=self.registry,
        )

    def increment(self, name: str, /, amount: float = 1, **labels: object) -> None:
        """Count something: `increment("orders.created", plan="pro")` is `orders_created_total{plan="pro"}`.

        Raises:
            ConfigurationError: The name is no metric name, is another metric's, or comes with other labels than before.
        """
        self._family(prometheus_client.Counter, name, labels).series(labels).inc(amount)

    def gauge(self, name: str, /, value: float, **labels: object) -> None:
        """Set a value that goes up and down: `gauge("queue.depth", 3)` is `queue_depth`.

        Raises:
            ConfigurationError: As for `increment`.
        """
        self._family(prometheus_client.Gauge, name, labels).series(labels).set(value)

    def observe(self, name: str, /, value: float, **labels: object) -> None:
        """Add a value to a histogram, whose buckets follow the unit that the name ends in (seconds, bytes, or neither).

        Raises:
            ConfigurationError: As for `increment`.
        """
        self._family(prometheus_client.Histogram, name, labels).series(labels).observe(value)

    def timer(self, name: str, /, **labels: object) -> AbstractContextManager[Any]:
        """Time a block, also one that raises: `timer("order.create")` is the histogram `order_create_seconds`.

        Raises:
            ConfigurationError: As for `increment`.
        """
        timed: AbstractContextManager[Any] = (
            self._family(prometheus_client.Histogram, f"{name}.seconds", labels).series(labels).time()
        )
        return timed

    def family(self, kind: type, name: str, labels: tuple[str, ...], help_text: str) -> Family:
        """Declare a metric before its first use, with the text that explains it.

        Raises:
            ConfigurationError: As for `increment`.
        """
        exposed = re.sub(r"[.-]", "_", name)
        if kind is prometheus_client.Counter:
            exposed = exposed.removesuffix("_total")
        if not _NAME.fullmatch(exposed):
            raise ConfigurationError(f"{name!r} is no metric name: use letters, digits, dots, dashes and underscores.")
        options = {"buckets": _buckets(exposed)} if kind is prometheus_client.Histogram else {}
        with self._lock:
            family = self._families.get((kind, exposed))
            if family is None:
                try:
                    metric = kind(exposed, help_text, labels, registry=self.registry, **options)
                except ValueError as error:
                    raise ConfigurationError(f"{name!r} cannot be a metric here: {error}.") from error
                family = Family(metric, labels, self._max_series, lambda: self._overflow.labels(exposed).inc())
                self._families[kind, exposed] = family
            self._families[kind, name] = family
            return family

    def _family(self, kind: type, name: str, labels: dict[str, object]) -> Family:
        return self._families.get((kind, name)) or self.family(kind, name, tuple(labels), name)


class CurrentMetrics:
    """The metrics of the app whose request or job runs here; outside of any, prometheus-client's default registry."""

    def increment(self, name: str, /, amount: float = 1, **labels: object) -> None:
        """As `Metrics.increment`."""
        _current().increment(name, amount, **labels)

    def gauge(self, name: str, /, value: float, **labels: object) -> None:
        """As `Metrics.gauge`."""
        _current().gauge(name, value, **labels)

    def observe(self, name: str, /, value: float, **labels: object) -> None:
        """As `Metrics.observe`."""
        _current().observe(name, value, **labels)

    def timer(self, name: str, /, **labels: object) -> AbstractContextManager[Any]:
        """As `Metrics.timer`."""
        return _current().timer(name, **labels)

    def family(self, kind: type, name: str, labels: tuple[str, ...], help_text: str) -> Family:
        """As `Metrics.family`."""
        return _current().family(kind, name, labels, help_text)


metrics = CurrentMetrics()


def _current() -> Metrics:
    wiring = current_wiring()
    return wiring.get(Metrics) if wiring is not None and wiring.has(Metrics) else _of_process()


@cache
def _of_process() -> Metrics:
    return Metrics(prometheus_client.REGISTRY)


def _buckets(name: str) -> tuple[float, ...]:
    return SECONDS if name.endswith("_seconds") else BYTES if name.endswith("_bytes") else NUMBERS
