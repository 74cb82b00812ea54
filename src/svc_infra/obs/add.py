"""Observability for one app: its logs, its metrics, and `/metrics` to read them from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import GCCollector, Metric, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import adopt_libraries, flush_logs, is_set_up, setup_logging
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import Part, wiring_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request


def add_observability(
    app: Starlette, *, metrics_path: str | None = None, route_classifier: Callable[[str], str] | None = None
) -> None:
    """Set up logs, and metrics of the app, the process and every request.

    Logging is set up only where `setup_logging` was not called before. With `METRICS_ENABLED=false` the app's own
    metrics are kept but not served, and requests are not measured.

    Args:
        app: The app; its settings are `LOG_*` and `METRICS_*`.
        metrics_path: Where the metrics are served in Prometheus' text format; `METRICS_PATH` when left out.
        route_classifier: Gives the class of a request's path, the label `class` of every HTTP metric.
    """
    wiring = wiring_of(app)
    if wiring.has(Metrics):
        return
    settings = wiring.settings
    metrics = Metrics()
    wiring.provide(Metrics, metrics)
    if not is_set_up():
        setup_logging(settings=settings)
    wiring.add(Part("logging", run=_library_logs))
    if settings.metrics.enabled:
        ProcessCollector(registry=metrics.registry)
        GCCollector(registry=metrics.registry)
        wiring.provide(HttpMetrics, HttpMetrics(metrics, route_classifier=route_classifier))
        app.add_route(metrics_path or settings.metrics.path, _page(metrics), include_in_schema=False)


class _WithoutCreated:
    """The registry without the time at which each series began, which would double the number of series."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            if metric.type in ("counter", "histogram"):
                metric.samples = [sample for sample in metric.samples if sample.name != f"{metric.name}_created"]
            yield metric


def _page(metrics: Metrics) -> Callable[[Request], Response]:
    shown = _WithoutCreated(metrics)

    def page(request: Request) -> Response:  # not async: a scrape of many series runs in a thread, beside the loop
        return Response(generate_latest(shown), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    page.route_policy = "public"  # type: ignore[attr-defined]  # see security.access, which lies above this room
    return page


@asynccontextmanager
async def _library_logs() -> AsyncIterator[None]:
    adopt_libraries()
    yield
    flush_logs()  # a server that was stopped by a signal ends by that signal, without a word to the logging module
