"""The logger and the metrics of the app that runs here."""

from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import metrics

__all__ = ["logger", "metrics"]
