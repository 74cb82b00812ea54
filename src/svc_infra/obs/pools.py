"""The connections of SQL databases, by the name of their engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from svc_infra.wiring import Wiring

if TYPE_CHECKING:  # an app without a database does not load SQLAlchemy
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

SqlEngine: TypeAlias = "Engine | AsyncEngine"


class SqlEngines(Collector):
    """The engines of one app."""

    def __init__(self) -> None:
        self.named: dict[str, Engine] = {}

    def watch(self, engines: Mapping[str, SqlEngine] | Iterable[SqlEngine]) -> None:
        """Show these, too; those without a name are `engine_1` and so on."""
        if not isinstance(engines, Mapping):
            engines = {f"engine_{number}": engine for number, engine in enumerate(engines, 1)}
        for name, engine in engines.items():
            self.named[name] = cast("Engine", getattr(engine, "sync_engine", engine))

    def describe(self) -> Iterable[Metric]:
        """Every metric, without values."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        """Every metric as it is now."""
        size, checked_out, overflow, waiting, timeouts = families = _families()
        for name, engine in list(self.named.items()):
            pool: Any = engine.pool
            if hasattr(pool, "checkedout"):  # any other kind keeps no connections
                size.add_metric([name], pool.size())
                checked_out.add_metric([name], pool.checkedout())
                overflow.add_metric([name], max(0, pool.overflow()))
            if hasattr(pool, "waiting"):  # `svc_infra.db.pool` counts that
                waiting.add_metric([name], pool.waiting)
                timeouts.add_metric([name], pool.timeouts)
        yield from families


def engines_of(wiring: Wiring) -> SqlEngines:
    """The engines of an app."""
    if not wiring.has(SqlEngines):
        wiring.provide(SqlEngines, SqlEngines())
    return wiring.get(SqlEngines)


def _families() -> list[GaugeMetricFamily | CounterMetricFamily]:
    def gauge(name: str, help_text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"db_pool_{name}", help_text, labels=["engine"])

    return [
        gauge("size", "Connections that are kept open."),
        gauge("checked_out", "Connections in use."),
        gauge("overflow", "Connections open beyond those that are kept."),
        gauge("waiting", "Callers that wait for a connection."),
        CounterMetricFamily("db_pool_timeouts", "Callers that got no connection in time.", labels=["engine"]),
    ]
