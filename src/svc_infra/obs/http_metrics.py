"""Metrics of the HTTP edge, under the names of OpenTelemetry's conventions as Prometheus writes them.

Every request passes here, so the numbers are kept as plain ones and become metrics when they are read: that costs a
request a fraction of what the library's counters and histograms, which any thread may use, would cost it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import BYTES, MAX_LABEL_CHARS, MAX_SERIES, OTHER, SECONDS, Metrics

UNMATCHED = "unmatched"
"""The route label of every request that no route answered."""
_TIMED = ("method", "route", "class")
_COUNTED = ("method", "route", "code", "class")
METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"])


@dataclass(slots=True)
class _Distribution:
    """How values spread over buckets."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def buckets(self) -> list[tuple[str, float]]:
        """The counts of all values up to each bound, as Prometheus wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, accumulate(self.counts), strict=True)]


@dataclass(slots=True)
class _Timed:
    """The answers that differ in nothing but their status."""

    seconds: _Distribution = field(default_factory=lambda: _Distribution(SECONDS))
    bytes: _Distribution = field(default_factory=lambda: _Distribution(BYTES))


@dataclass(slots=True)
class _Answers:
    """The answers with the same labels."""

    timed: _Timed
    count: int = 0


class HttpMetrics(Collector):
    """Counts and times requests by route template, never by path.

    It is told of every request in the event loop's thread; the metrics may be read in any other.

    Args:
        metrics: Where they are registered.
        route_classifier: Gives the class of a request's path (such as `public` or `internal`), a label of every metric.
        max_series: Most series of one metric; the labels of further ones become "other".
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        route_classifier: Callable[[str], str] | None = None,
        max_series: int = MAX_SERIES,
    ) -> None:
        self._classifier = route_classifier
        self._max_series = max_series
        self._in_flight: dict[str, int] = {} if route_classifier else {"": 0}
        self._timed: dict[tuple[str, str, str], _Timed] = {}
        self._answers: dict[tuple[str, str, str, str], _Answers] = {}
        self._found: dict[tuple[str, str, int, str], _Answers] = {}  # what the edge says, as quickly as possible
        self._exceptions = metrics.family(
            Counter, "http_server_exceptions_total", ("route", "exception", "class"), "Exceptions answered with a 5xx."
        )
        metrics.registry.register(self)

    def started(self, path: str) -> str:
        """Count a request in; give what this returns to `finished`."""
        route_class = "" if self._classifier is None else self._class_of(self._classifier, path)
        self._in_flight[route_class] += 1
        return route_class

    def finished(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        sent_bytes: int,
        route_class: str,
        error: BaseException | None,
    ) -> None:
        """Count a request out."""
        self._in_flight[route_class] -= 1
        found = self._found.get((method, route, status, route_class))
        if found is None:
            found = self._find(method, route, status, route_class)
        found.count += 1
        timed = found.timed
        timed.seconds.counts[bisect_left(SECONDS, seconds)] += 1
        timed.seconds.total += seconds
        timed.bytes.counts[bisect_left(BYTES, sent_bytes)] += 1
        timed.bytes.total += sent_bytes
        if error is not None:
            labels = {"route": route, "exception": type(error).__name__, "class": route_class}
            self._exceptions.series(labels).inc()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        requests = CounterMetricFamily("http_server_requests", "Requests answered.", labels=_COUNTED)
        for labels, answers in list(self._answers.items()):
            requests.add_metric(labels, answers.count)
        seconds = HistogramMetricFamily(
            "http_server_request_duration_seconds",
            "Time from the request's first byte to the last byte of its answer.",
            labels=_TIMED,
        )
        sizes = HistogramMetricFamily("http_server_response_size_bytes", "Bytes of the answer's body.", labels=_TIMED)
        for place, timed in list(self._timed.items()):
            seconds.add_metric(place, timed.seconds.buckets(), timed.seconds.total)
            sizes.add_metric(place, timed.bytes.buckets(), timed.bytes.total)
        in_flight = GaugeMetricFamily(
            "http_server_inflight_requests", "Requests that are being answered.", labels=("class",)
        )
        for route_class, count in list(self._in_flight.items()):
            in_flight.add_metric((route_class,), count)
        yield from (requests, seconds, sizes, in_flight)

    def _class_of(self, classify: Callable[[str], str], path: str) -> str:
        try:
            route_class = str(classify(path))[:MAX_LABEL_CHARS]
        except Exception:  # noqa: BLE001 - a request is worth more than one of its labels; the log says what failed
            logger.exception("metrics.route_classifier_failed", path=path)
            route_class = OTHER
        if route_class not in self._in_flight and len(self._in_flight) >= self._max_series - 1:
            route_class = OTHER
        self._in_flight.setdefault(route_class, 0)
        return route_class

    def _find(self, method: str, route: str, status: int, route_class: str) -> _Answers:
        """Where these answers are counted; beyond the limit all new ones are counted together."""
        labels = (method if method in METHODS else "_OTHER", route, str(status), route_class)
        if labels not in self._answers and len(self._answers) >= self._max_series - 1:
            labels = (OTHER, OTHER, OTHER, OTHER)
        method_label, route_label, _, class_label = labels
        if labels not in self._answers:
            timed = self._timed.setdefault((method_label, route_label, class_label), _Timed())
            self._answers[labels] = _Answers(timed)
        if len(self._found) < self._max_series:
            self._found[method, route, status, route_class] = self._answers[labels]
        return self._answers[labels]
