"""Metrics: counters, gauges and histograms by dotted name, in a registry of each app's own."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from threading import Lock
from time import perf_counter
from typing import Literal

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svc_infra.errors import ConfigurationError
from svc_infra.obs.cells import Block, Cells
from svc_infra.obs.series import MAX_SERIES, OTHER, Described, Labels, as_metric
from svc_infra.wiring import current_wiring

MAX_LABEL_CHARS = 128

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets of OpenTelemetry's `http.server.request.duration`; used for every metric that ends in `_seconds`."""
BYTES = tuple(float(4**power) for power in range(4, 14))
NUMBERS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))

MetricKind = Literal["counter", "gauge", "sum", "histogram"]

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED = re.compile(r"__.*|le|quantile")


class Family(Collector):
    """One metric and its series in this process, at most `max_series` of them.

    Args:
        described: The metric.
        cells: Where its numbers lie.
        max_series: Most series.
        max_values: Most values of single labels; further ones become "other".
        count_overflow: Told of every measurement that becomes "other".
    """

    def __init__(
        self,
        described: Described,
        cells: Cells,
        *,
        max_series: int,
        max_values: Mapping[str, int],
        count_overflow: Callable[[], None],
    ) -> None:
        self.described = described
        self._cells = cells
        self._max_series = max_series
        self._max_values = {described.labels.index(label): most for label, most in max_values.items()}
        self._seen: dict[int, set[str]] = {position: set() for position in self._max_values}
        self._count_overflow = count_overflow
        self._series: dict[Labels, Block] = {}
        self._exemplars: dict[Labels, Block] = {}

    def block(self, values: Labels) -> Block:
        """The numbers of these label values, or of "other" where there are too many."""
        return self._series.get(values) or self._new(values)

    def exemplars(self, values: Labels) -> Block | None:
        """The traces that are examples of what is in the buckets of a series; None where there is no such series."""
        with self._cells.lock:
            if values not in self._series:
                return None
            if values not in self._exemplars:
                traced = self.described._replace(kind="exemplars")
                self._exemplars[values] = self._cells.block(traced.key(values), traced.size)
            return self._exemplars[values]

    def add(self, labels: Mapping[str, object], amount: float) -> None:
        """Add to the counter of these labels.

        Raises:
            ConfigurationError: The label names are not those of the metric's first use, or the amount is negative.
        """
        if amount < 0:
            raise ConfigurationError(f"The counter {self.described.name} cannot go down: use a gauge.")
        block = self.block(self._values(labels))
        with self._cells.lock:
            block.numbers[0] += amount

    def set(self, labels: Mapping[str, object], value: float) -> None:
        """Set the gauge of these labels.

        Raises:
            ConfigurationError: As for `add`.
        """
        block = self.block(self._values(labels))
        with self._cells.lock:
            block.numbers[0] = value

    def observe(self, labels: Mapping[str, object], value: float) -> None:
        """Add a value to the histogram of these labels.

        Raises:
            ConfigurationError: As for `add`.
        """
        block, bucket = self.block(self._values(labels)), bisect_left(self.described.bounds, value)
        with self._cells.lock:
            block.numbers[0] += value
            block.numbers[bucket + 1] += 1

    def describe(self) -> Iterable[Metric]:
        """The metric without its series."""
        return [as_metric(self.described, {}, {})]

    def collect(self) -> Iterator[Metric]:
        """The metric as this process has counted it."""
        with self._cells.lock:
            series, exemplars = (
                {values: list(block.numbers) for values, block in blocks.items()}
                for blocks in (self._series, self._exemplars)
            )
        yield as_metric(self.described, series, exemplars)

    def _values(self, labels: Mapping[str, object]) -> Labels:
        try:
            values = tuple([str(labels[name])[:MAX_LABEL_CHARS] for name in self.described.labels])
        except KeyError:
            raise self._mismatch(labels) from None
        if len(labels) != len(values):
            raise self._mismatch(labels)
        return values

    def _new(self, values: Labels) -> Block:
        with self._cells.lock:
            values = tuple([self._bounded(position, value) for position, value in enumerate(values)])
            if is_other := values not in self._series and len(self._series) >= self._max_series - 1:
                values = (OTHER,) * len(values)
            if values not in self._series:
                key = self.described.key(values)
                self._series[values] = self._cells.block(key, self.described.size)
            block = self._series[values]
        if is_other:
            self._count_overflow()
        return block

    def _bounded(self, position: int, value: str) -> str:
        if (most := self._max_values.get(position)) is None:
            return value
        seen = self._seen[position]
        if value not in seen and len(seen) >= most:
            return OTHER
        seen.add(value)
        return value

    def _mismatch(self, labels: Mapping[str, object]) -> ConfigurationError:
        first, now = (", ".join(names) or "none" for names in (self.described.labels, labels))
        return ConfigurationError(
            f"The labels of {self.described.name} are {first}; here they are {now}. Use the same ones."
        )


class Metrics:
    """The metrics of one app.

    Args:
        registry: Where they are registered, beside those of other libraries; a registry of its own when left out. It
            shows what this process has counted, `/metrics` what all workers have.
        max_series: Most series of one metric.
    """

    def __init__(self, registry: prometheus_client.CollectorRegistry | None = None, *, max_series: int = MAX_SERIES):
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        self.cells = Cells()
        self._max_series = max_series
        self._families: dict[tuple[MetricKind, str], Family] = {}
        self._lock = Lock()
        overflow = Described(
            "counter", "metrics_series_overflow", 'Measurements whose label became "other".', ("metric",)
        )
        self._overflow = Family(overflow, self.cells, max_series=max_series, max_values={}, count_overflow=lambda: None)
        self.registry.register(self._overflow)

    def increment(self, name: str, /, amount: float = 1, **labels: object) -> None:
        """Count something: `increment("orders.created", plan="pro")` is `orders_created_total{plan="pro"}`.

        Raises:
            ConfigurationError: The name is no metric name, is another metric's, or comes with other labels than before.
        """
        self._family("counter", name, labels).add(labels, amount)

    def gauge(self, name: str, /, value: float, **labels: object) -> None:
        """Set a value that goes up and down: `gauge("queue.depth", 3)` is `queue_depth`.

        Raises:
            ConfigurationError: As for `increment`.
        """
        self._family("gauge", name, labels).set(labels, value)

    def observe(self, name: str, /, value: float, **labels: object) -> None:
        """Add a value to a histogram, whose buckets follow the unit that the name ends in (seconds, bytes, or neither).

        Raises:
            ConfigurationError: As for `increment`.
        """
        self._family("histogram", name, labels).observe(labels, value)

    def timer(self, name: str, /, **labels: object) -> AbstractContextManager[None]:
        """Time a block, also one that raises: `timer("order.create")` is the histogram `order_create_seconds`.

        Raises:
            ConfigurationError: As for `increment`.
        """
        return _Timer(self._family("histogram", f"{name}.seconds", labels), labels)

    def family(
        self,
        kind: MetricKind,
        name: str,
        labels: Labels,
        help_text: str,
        *,
        max_series: int | None = None,
        max_values: Mapping[str, int] | None = None,
    ) -> Family:
        """Declare a metric before its first use, with the text that explains it.

        Args:
            kind: `sum` is a gauge whose values in several workers add up.
            name: As for `increment`.
            labels: The names of its labels.
            help_text: What it is.
            max_series: Most series; that of all metrics when left out.
            max_values: Most values of single labels; further ones become "other".

        Raises:
            ConfigurationError: As for `increment`.
        """
        exposed = re.sub(r"[.-]", "_", name)
        if kind == "counter":
            exposed = exposed.removesuffix("_total")
        if not _NAME.fullmatch(exposed):
            raise ConfigurationError(f"{name!r} is no metric name: use letters, digits, dots, dashes and underscores.")
        with self._lock:
            family = self._families.get((kind, exposed))
            if family is None:
                family = self._declared(
                    Described(kind, exposed, help_text, labels, _buckets(exposed) if kind == "histogram" else ()),
                    self._max_series if max_series is None else max_series,
                    max_values or {},
                )
                self._families[kind, exposed] = family
            self._families[kind, name] = family
            return family

    def foreign(self) -> Iterator[Metric]:
        """What other libraries have registered, as they count it in this process."""
        own = {self._overflow.described.name, *(family.described.name for family in list(self._families.values()))}
        return (metric for metric in self.registry.collect() if metric.name not in own)

    def _declared(self, described: Described, max_series: int, max_values: Mapping[str, int]) -> Family:
        name = described.name
        family = Family(
            described,
            self.cells,
            max_series=max_series,
            max_values=max_values,
            count_overflow=lambda: self._overflow.add({"metric": name}, 1),
        )
        wrong = [label for label in described.labels if not _NAME.fullmatch(label) or _RESERVED.fullmatch(label)]
        try:
            if wrong:
                raise ValueError(f"{wrong[0]!r} cannot be a label")
            self.registry.register(family)
        except ValueError as error:
            raise ConfigurationError(f"{name!r} cannot be a metric here: {error}.") from error
        return family

    def _family(self, kind: MetricKind, name: str, labels: Mapping[str, object]) -> Family:
        return self._families.get((kind, name)) or self.family(kind, name, tuple(labels), name)


class _Timer:
    """Times a block."""

    __slots__ = ("_family", "_labels", "_started")

    def __init__(self, family: Family, labels: Mapping[str, object]) -> None:
        self._family = family
        self._labels = labels

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._family.observe(self._labels, perf_counter() - self._started)


class CurrentMetrics:
    """The metrics of the app whose request or job runs here; outside of any, prometheus-client's default registry."""

    def increment(self, name: str, /, amount: float = 1, **labels: object) -> None:
        """As `Metrics.increment`."""
        current_metrics().increment(name, amount, **labels)

    def gauge(self, name: str, /, value: float, **labels: object) -> None:
        """As `Metrics.gauge`."""
        current_metrics().gauge(name, value, **labels)

    def observe(self, name: str, /, value: float, **labels: object) -> None:
        """As `Metrics.observe`."""
        current_metrics().observe(name, value, **labels)

    def timer(self, name: str, /, **labels: object) -> AbstractContextManager[None]:
        """As `Metrics.timer`."""
        return current_metrics().timer(name, **labels)

    def family(self, kind: MetricKind, name: str, labels: Labels, help_text: str) -> Family:
        """As `Metrics.family`."""
        return current_metrics().family(kind, name, labels, help_text)


metrics = CurrentMetrics()


def current_metrics() -> Metrics:
    """The metrics that `metrics` stands for here."""
    wiring = current_wiring()
    return wiring.get(Metrics) if wiring is not None and wiring.has(Metrics) else _of_process()


@cache
def _of_process() -> Metrics:
    return Metrics(prometheus_client.REGISTRY)


def _buckets(name: str) -> tuple[float, ...]:
    return SECONDS if name.endswith("_seconds") else BYTES if name.endswith("_bytes") else NUMBERS
