"""Metrics of the HTTP edge, under the names of OpenTelemetry's conventions as Prometheus writes them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import MAX_SERIES, OTHER, Metrics

UNMATCHED = "unmatched"
"""The route label of every request that no route answered."""
METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"])


class HttpMetrics:
    """Counts and times requests by route template, never by path.

    Args:
        metrics: Where they are registered.
        route_classifier: Gives the class of a request's path (such as `public` or `internal`), a label of every metric.
    """

    def __init__(self, metrics: Metrics, *, route_classifier: Callable[[str], str] | None = None) -> None:
        self._classifier = route_classifier
        self._requests = metrics.family(
            Counter, "http_server_requests_total", ("method", "route", "code", "class"), "Requests answered."
        )
        self._duration = metrics.family(
            Histogram,
            "http_server_request_duration_seconds",
            ("method", "route", "class"),
            "Time from the request's first byte to the last byte of its answer.",
        )
        self._in_flight = metrics.family(
            Gauge, "http_server_inflight_requests", ("class",), "Requests that are being answered."
        )
        self._exceptions = metrics.family(
            Counter, "http_server_exceptions_total", ("route", "exception", "class"), "Exceptions answered with a 5xx."
        )
        self._bound: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}
        self._bound_in_flight: dict[str, Gauge] = {}

    def started(self, path: str) -> str:
        """Count a request in; give what this returns to `finished`."""
        route_class = self._class_of(path)
        self._gauge(route_class).inc()
        return route_class

    def finished(
        self, method: str, route: str, status: int, seconds: float, route_class: str, error: BaseException | None
    ) -> None:
        """Count a request out."""
        self._gauge(route_class).dec()
        key = (method, route, status, route_class)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(method if method in METHODS else "_OTHER", route, status, route_class)
            if len(self._bound) < MAX_SERIES:
                self._bound[key] = bound
        bound[0].inc()
        bound[1].observe(seconds)
        if error is not None:
            labels = {"route": route, "exception": type(error).__name__, "class": route_class}
            self._exceptions.series(labels).inc()

    def _class_of(self, path: str) -> str:
        if self._classifier is None:
            return ""
        try:
            return self._classifier(path)
        except Exception:  # noqa: BLE001 - a request is worth more than one of its labels; the log says what failed
            logger.exception("metrics.route_classifier_failed", path=path)
            return OTHER

    def _gauge(self, route_class: str) -> Gauge:
        gauge = self._bound_in_flight.get(route_class)
        if gauge is None:
            gauge = self._in_flight.series({"class": route_class})
            if len(self._bound_in_flight) < MAX_SERIES:
                self._bound_in_flight[route_class] = gauge
        return gauge

    def _bind(self, method: str, route: str, status: int, route_class: str) -> tuple[Counter, Histogram]:
        timed = {"method": method, "route": route, "class": route_class}
        return self._requests.series({**timed, "code": status}), self._duration.series(timed)
