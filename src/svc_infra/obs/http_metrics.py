"""Metrics of the HTTP edge, under the names of OpenTelemetry's conventions as Prometheus writes them.

Every request passes here: what is found for one is kept, so that the next like it only adds to five numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from time import time
from typing import TypeAlias

from svc_infra.obs.cells import Numbers
from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import BYTES, MAX_LABEL_CHARS, SECONDS, Metrics
from svc_infra.obs.series import MAX_SERIES, OTHER, Labels, write_exemplar
from svc_infra.wiring import current_wiring

UNMATCHED = "unmatched"
"""The route label of every request that no route answered."""
METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"])
OTHER_METHOD = "_OTHER"
MAX_CLASSES = 8
"""Most route classes; the requests of further ones are counted as "other"."""
MAX_UNMATCHED = 32
"""Most series of requests that no route answered; whoever sends random ones opens no more."""

_UNMEASURED = "\0"  # the class of requests that are not counted
_METHOD_NOT_ALLOWED = 405
_TIMED = ("method", "route", "class")
_WHOLE_BYTES = tuple(map(int, BYTES))  # numbers of one kind compare faster


_Answers: TypeAlias = "tuple[Numbers, Numbers, Numbers, Labels]"
"""Where answers of one kind are counted and measured, and the labels of their time; a tuple is taken apart fastest."""


class HttpMetrics:
    """Counts and times requests by route template, never by path.

    It is told of every request in the event loop's thread; the metrics may be read in any other.

    Args:
        metrics: Where they are kept.
        route_classifier: Gives the class of a request's path (such as `public` or `internal`), a label of every metric.
        page: The path at which the metrics are read; that is not counted.
        max_series: Most series of one metric; the labels of further ones become "other".

    Attributes:
        page: As given.
        classifier: As given; may be set until the first request.
        traced: Gives the id of the trace that the current request is part of, as a number, or None where nobody keeps
            that trace. It becomes an example of a request that took so long.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        route_classifier: Callable[[str], str] | None = None,
        page: str | None = None,
        max_series: int = MAX_SERIES,
    ) -> None:
        self.page = page
        self.traced: Callable[[], int | None] | None = None
        self.classifier = route_classifier
        self._max_series = max_series
        self._class_of_route: dict[str, str] = {}
        self._unmatched: set[Labels] = set()
        self._unclassified: Numbers | None = None
        self._in_flight: dict[str, Numbers] = {}
        self._found: dict[tuple[str, str, int, str], _Answers] = {}  # what the edge says, as quickly as possible
        self._requests = metrics.family(
            "counter",
            "http_server_requests_total",
            ("method", "route", "code", "class"),
            "Requests answered.",
            max_series=max_series,
        )
        self._seconds = metrics.family(
            "histogram",
            "http_server_request_duration_seconds",
            _TIMED,
            "Time from the request's first byte to the last byte of its answer.",
            max_series=max_series,
        )
        self._bytes = metrics.family(
            "histogram",
            "http_server_response_size_bytes",
            _TIMED,
            "Bytes of the answer's body.",
            max_series=max_series,
        )
        self._running = metrics.family(
            "sum", "http_server_inflight_requests", ("class",), "Requests that are being answered."
        )
        self._exceptions = metrics.family(
            "counter",
            "http_server_exceptions_total",
            ("route", "exception", "class"),
            "Exceptions answered with a 5xx.",
        )
        metrics.cells.when_moved(self._look_again)

    def started(self, path: str) -> str:
        """Count a request in; give what this returns to `finished`."""
        if path == self.page:
            return _UNMEASURED
        if self.classifier is None:
            if self._unclassified is None:
                self._unclassified = self._running.block(("",)).numbers
            self._unclassified[0] += 1
            return ""
        route_class = self._class_of(self.classifier, path)
        self._in_flight[route_class][0] += 1
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
        if route_class == _UNMEASURED:
            return
        if route_class:
            self._in_flight[route_class][0] -= 1
        elif self._unclassified is not None:
            self._unclassified[0] -= 1
        found = self._found.get((method, route, status, route_class))
        if found is None:
            found = self._find(method, route, status, route_class)
        count, durations, sizes, timed = found
        bucket = bisect_left(SECONDS, seconds) + 1
        count[0] += 1
        durations[0] += seconds
        durations[bucket] += 1
        sizes[0] += sent_bytes
        sizes[bisect_left(_WHOLE_BYTES, sent_bytes) + 1] += 1
        if self.traced is not None and (trace_id := self.traced()) is not None:
            examples = self._seconds.exemplars(timed)
            if examples is not None:
                write_exemplar(examples.numbers, bucket - 1, trace_id, seconds, time())
        if error is not None:
            self._exceptions.add({"route": route, "exception": type(error).__name__, "class": route_class}, 1)

    def _look_again(self) -> None:
        """Find the numbers where they are now."""
        self._found.clear()
        if self._unclassified is not None:
            self._unclassified = self._running.block(("",)).numbers
        self._in_flight = {name: self._running.block((name,)).numbers for name in self._in_flight}

    def _class_of(self, classify: Callable[[str], str], path: str) -> str:
        try:
            route_class = str(classify(path))[:MAX_LABEL_CHARS] or OTHER
        except Exception:  # noqa: BLE001 - a request is worth more than one of its labels; the log says what failed
            logger.exception("metrics.route_classifier_failed", path=path)
            route_class = OTHER
        if route_class not in self._in_flight and len(self._in_flight) >= MAX_CLASSES:
            route_class = OTHER
        if route_class not in self._in_flight:
            self._in_flight[route_class] = self._running.block((route_class,)).numbers
        return route_class

    def _find(self, method: str, route: str, status: int, route_class: str) -> _Answers:
        """Where these answers are counted.

        A stranger chooses the path, the method and through them the class. None of that opens histograms, which have
        some thirty series each: what no route answers, for its path or its method, is timed together, and a route has
        the class of its first request, any other is "other".
        """
        said = (method, route, status, route_class)
        known = method if method in METHODS else OTHER_METHOD
        counted = (known, route, str(status), route_class)
        if route == UNMATCHED and counted not in self._unmatched:
            if len(self._unmatched) < MAX_UNMATCHED:
                self._unmatched.add(counted)
            else:
                counted = (OTHER, UNMATCHED, OTHER, OTHER)
        if route == UNMATCHED or status == _METHOD_NOT_ALLOWED:
            known, route = OTHER_METHOD, UNMATCHED
        if len(self._class_of_route) < self._max_series:
            self._class_of_route.setdefault(route, route_class)
        timed = (known, route, route_class if self._class_of_route.get(route) == route_class else OTHER)
        found = (
            self._requests.block(counted).numbers,
            self._seconds.block(timed).numbers,
            self._bytes.block(timed).numbers,
            timed,
        )
        if len(self._found) < self._max_series:
            self._found[said] = found
        return found


def metrics_page() -> str | None:
    """The path at which the app that runs here shows its metrics: asked by machines, by address, and under any load."""
    wiring = current_wiring()
    return wiring.get(HttpMetrics).page if wiring is not None and wiring.has(HttpMetrics) else None
