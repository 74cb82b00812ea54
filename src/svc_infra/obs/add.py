"""Observability for one app: its logs, its metrics with `/metrics` to read them from, and its traces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import GCCollector, ProcessCollector

from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import adopt_libraries, flush_logs, is_set_up, setup_logging
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.page import Readers, Shown, metrics_page
from svc_infra.obs.workers import joined, sharing
from svc_infra.wiring import Part, Wiring, wiring_of

if TYPE_CHECKING:
    from starlette.applications import Starlette


def add_observability(
    app: Starlette, *, metrics_path: str | None = None, route_classifier: Callable[[str], str] | None = None
) -> None:
    """Set up logs, and metrics of the app, the process and every request.

    Logging is set up only where `setup_logging` was not called before. With `METRICS_ENABLED=false` the app's own
    metrics are kept but not served, and requests are not measured.

    Args:
        app: The app; its settings are `LOG_*`, `METRICS_*` and `OTEL_*`.
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
        path = metrics_path or settings.metrics.path
        ProcessCollector(registry=metrics.registry)
        GCCollector(registry=metrics.registry)
        wiring.provide(HttpMetrics, HttpMetrics(metrics, route_classifier=route_classifier, page=path))
        shown = Shown(metrics)
        app.add_route(path, metrics_page(shown, _readers(wiring)), include_in_schema=False)
        wiring.add(Part("metrics", run=lambda: _shared(wiring, metrics, shown)))


def _readers(wiring: Wiring) -> Readers:
    settings = wiring.settings
    token = settings.secrets.get("METRICS_TOKEN")
    return Readers(
        settings.metrics.networks,
        None if token is None else token.get_secret_value(),
        open_to_all=settings.environment.is_trusted,
    )


@asynccontextmanager
async def _shared(wiring: Wiring, metrics: Metrics, shown: Shown) -> AsyncIterator[None]:
    """While the app runs, its numbers are among those of the other workers, where there are any."""
    settings = wiring.settings
    folder = None if settings.metrics.dir is None else Path(settings.metrics.dir)
    shown.workers = joined(metrics, service=settings.app.name, folder=folder)
    try:
        if shown.workers is None:
            yield
        else:
            async with sharing(shown.workers):
                yield
    finally:
        shown.workers = None


@asynccontextmanager
async def _library_logs() -> AsyncIterator[None]:
    adopt_libraries()
    yield
    flush_logs()  # a server that was stopped by a signal ends by that signal, without a word to the logging module
