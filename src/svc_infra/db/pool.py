"""A pool of connections that knows who waits for one; `svc_infra.obs` shows it."""

from __future__ import annotations

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection


class MeasuredPool(AsyncAdaptedQueuePool):
    """A pool that knows who waits for it: give it to an engine as `poolclass`.

    Attributes:
        waiting: Callers that wait for a connection, or for one to be opened or checked.
        timeouts: Callers that got none in time.
    """

    waiting = 0
    timeouts = 0
    _sqla_logger_namespace = "sqlalchemy.pool.impl.MeasuredPool"  # its lines are SQLAlchemy's, at its log level

    def connect(self) -> PoolProxiedConnection:
        """A connection."""
        self.waiting += 1
        try:
            return super().connect()
        except PoolTimeoutError:
            self.timeouts += 1
            raise
        finally:
            self.waiting -= 1
