"""Observability: what the service is doing, for people and for machines.

- `logging`: `logger`, `setup_logging`; one line per event · `redact`: what a line may show
- `metrics`: `metrics`, `Metrics`; counters, gauges and histograms · `http_metrics`: those of the edge
- `tracing`: W3C trace context · `context`: who and what the current request or job is
- `add`: `add_observability`
"""

from svc_infra.obs.logging import logger, setup_logging
from svc_infra.obs.metrics import Metrics, metrics

__all__ = ["Metrics", "logger", "metrics", "setup_logging"]
