"""Observability for one app: its logs, its metrics with `/metrics` to read them from, and its traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import GCCollector, ProcessCollector

from svc_infra._optional import need
from svc_infra.errors import ConfigurationError
from svc_infra.obs.http_metrics import HttpMetrics
from svc_infra.obs.logging import adopt_libraries, flush_logs, is_set_up, setup_logging
from svc_infra.obs.metrics import Metrics
from svc_infra.obs.page import FixedRoute, Readers, Shown, metrics_page
from svc_infra.obs.pools import SqlEngine, engines_of
from svc_infra.obs.tracing.sampling import Sampler
from svc_infra.obs.tracing.spans import Tracing, sampled_trace
from svc_infra.obs.tracing.sql import trace_statements
from svc_infra.obs.workers import joined, sharing
from svc_infra.route_policy import PUBLIC, declares
from svc_infra.wiring import Part, Phase, Wiring, wiring_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.applications import Starlette


def add_observability(
    app: Starlette,
    *,
    db_engines: Mapping[str, SqlEngine] | Iterable[SqlEngine] | None = None,
    metrics_path: str | None = None,
    route_classifier: Callable[[str], str] | None = None,
    span_exporter: SpanExporter | None = None,
) -> None:
    """Set up logs, metrics of the app, the process and every request, and traces where there is a place for them.

    A second call changes nothing but what it names, so an app of `create_app`, which has made the first, can still be
    given a classifier. Logging is set up only where `setup_logging` was not called before. With `METRICS_ENABLED=false`
    the app's own metrics are kept but not served, and requests are not measured.

    Args:
        app: The app; its settings are `LOG_*`, `METRICS_*` and `OTEL_*`.
        db_engines: SQLAlchemy's, beside that of `add_db`: for the metrics `db_pool_*`, and spans of their statements.
        metrics_path: Where the metrics are served; `METRICS_PATH` when left out.
        route_classifier: Gives the class of a request's path, the label `class` of every HTTP metric.
        span_exporter: Takes the spans, instead of the endpoint that `OTEL_EXPORTER_OTLP_ENDPOINT` names.

    Raises:
        ConfigurationError: The app has already started.
        MissingExtraError: Traces are asked for and the extra `otel` is not installed.
    """
    wiring = wiring_of(app)
    if wiring.phase not in (Phase.NEW, Phase.STOPPED):
        raise ConfigurationError("Observability was added after the app started: add it before.")
    if not wiring.has(Metrics):
        _begin(wiring)
    if wiring.settings.metrics.enabled:
        _serve_metrics(app, wiring, metrics_path)
        http = wiring.get(HttpMetrics)
        http.classifier = route_classifier or http.classifier
    if db_engines is not None:
        engines_of(wiring).watch(db_engines)
    if not wiring.has(Tracing) and (span_exporter is not None or _endpoint(wiring) is not None):
        _trace(wiring, span_exporter)


def _begin(wiring: Wiring) -> None:
    metrics = Metrics()
    wiring.provide(Metrics, metrics)
    if not is_set_up():
        setup_logging(settings=wiring.settings)
    wiring.add(Part("logging", run=_library_logs))
    if wiring.settings.metrics.enabled:
        ProcessCollector(registry=metrics.registry)
        GCCollector(registry=metrics.registry)
        metrics.registry.register(engines_of(wiring))
        shown = Shown(metrics)
        wiring.provide(Shown, shown)
        wiring.provide(HttpMetrics, HttpMetrics(metrics))
        wiring.add(Part("metrics", run=lambda: _shared(wiring, metrics, shown)))


def _serve_metrics(app: Starlette, wiring: Wiring, path: str | None) -> None:
    http, settings = wiring.get(HttpMetrics), wiring.settings
    if http.page is not None and path in (None, http.page):
        return
    if http.page is not None:  # an earlier call has put it elsewhere
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != http.page]
    http.page = path or settings.metrics.path
    token = settings.secrets.get("METRICS_TOKEN")
    readers = Readers(
        settings.metrics.networks,
        None if token is None else token.get_secret_value(),
        open_to_all=settings.environment.is_trusted,
    )
    page = declares(PUBLIC)(metrics_page(wiring.get(Shown), readers))  # which asks itself who reads
    app.router.routes.append(FixedRoute(http.page, page, include_in_schema=False))


def _endpoint(wiring: Wiring) -> str | None:
    otel = wiring.settings.otel
    if otel.sdk_disabled:
        return None
    if otel.exporter_otlp_traces_endpoint is not None:
        return str(otel.exporter_otlp_traces_endpoint)
    base = otel.exporter_otlp_endpoint
    return None if base is None else f"{base.rstrip('/')}/v1/traces"


def _trace(wiring: Wiring, exporter: SpanExporter | None) -> None:
    settings, otel = wiring.settings, wiring.settings.otel
    need("opentelemetry.sdk.trace")
    need("opentelemetry.exporter.otlp.proto.http")
    from svc_infra.obs.tracing.export import SpanQueue, otlp_exporter
    from svc_infra.obs.tracing.sdk import Recorder

    recorder = Recorder(service=settings.app.name, release=settings.app.release, environment=str(settings.environment))
    sampler = Sampler(otel.traces_sampler, otel.traces_sampler_arg)
    tracing = Tracing(sampler, recorder, unwatched_paths=settings.log.dropped)
    wiring.provide(Tracing, tracing)
    if wiring.has(HttpMetrics):
        wiring.get(HttpMetrics).traced = sampled_trace

    def connect() -> SpanExporter:
        headers = settings.secrets.get("OTEL_EXPORTER_OTLP_HEADERS")
        return exporter or otlp_exporter(
            _endpoint(wiring) or "",
            "" if headers is None else headers.get_secret_value(),
            otel.exporter_otlp_timeout / 1000,
        )

    queue = SpanQueue(connect, wiring.get(Metrics), max_spans=otel.bsp_max_queue_size)
    recorder.send_to(queue)

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        queue.start()
        with ExitStack() as traced:
            for engine in engines_of(wiring).named.values():
                traced.callback(trace_statements(engine, tracing))
            try:
                yield
            finally:
                await asyncio.to_thread(queue.close)

    wiring.add(Part("tracing", run=run))


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
