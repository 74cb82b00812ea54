"""SIGTERM: what a service does between being told to stop and stopping, so that no client notices.

A server that simply stops cuts the requests that are on their way to it. So, in this order:

1. At once the app is draining: readiness answers 503, and every answer says `Connection: close`.
2. For `EDGE_DRAIN_DELAY_SECONDS` everything goes on, until every load balancer has seen that and sends nobody any more.
3. The listeners close. Where the socket was inherited, as with `uvicorn --workers`, the other workers go on accepting
   from it, so no connection is refused and none that waits in its queue is lost.
4. The connections that are already open get their answers, as long as they ask for one within `LINGER_SECONDS`.
5. The server's own shutdown follows: requests in flight end, for at most `APP_SHUTDOWN_GRACE_SECONDS`, then the rooms
   close. A second signal ends the waiting.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn

from svc_infra.config import Environment
from svc_infra.obs.logging import logger
from svc_infra.wiring import Phase, Wiring

DELAY_IN_PROD_SECONDS = 5.0
LINGER_SECONDS = 1.0
"""How long connections that are open but idle may still bring a request after the listeners have closed."""
LINGER_POLLS = 50

Handler = Callable[[int, FrameType | None], Any]


class Shutdown:
    """Stands before the server's own handler of SIGTERM while the app runs.

    Args:
        wiring: The app's.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._draining: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Handle SIGTERM in this block, where a server handles it and this is the thread that signals come to."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        if isinstance(server := getattr(before, "__self__", None), uvicorn.Server):
            from svc_infra.edge.protocol import bound  # only such a server has loaded what it builds on

            bound(server.config, self._wiring.settings.edge)
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, before, number)

        signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGTERM) is handle:
                signal.signal(signal.SIGTERM, before)
            if self._draining is not None:
                self._draining.cancel()

    def _begin(self, stop: Handler, number: int) -> None:
        if self._draining is not None:  # told twice: wait no longer
            self._draining.cancel()
            stop(number, None)
            return
        self._wiring.phase = Phase.DRAINING
        self._draining = asyncio.get_running_loop().create_task(self._drain(stop, number))

    async def _drain(self, stop: Handler, number: int) -> None:
        settings = self._wiring.settings
        delay = settings.edge.drain_delay_seconds
        if delay is None:
            delay = DELAY_IN_PROD_SECONDS if settings.environment is Environment.PROD else 0.0
        logger.info("shutdown.draining", in_flight=self._wiring.in_flight, delay_seconds=delay)
        await asyncio.sleep(delay)
        server = getattr(stop, "__self__", None)
        try:
            if isinstance(server, uvicorn.Server) and server.started:
                await _stop_accepting(server, grace_seconds=settings.app.shutdown_grace_seconds)
        finally:
            stop(number, None)


async def _stop_accepting(server: uvicorn.Server, *, grace_seconds: float) -> None:
    if server.config.timeout_graceful_shutdown is None:  # else a stream that never ends would keep the process for ever
        server.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
    for listener in server.servers:
        listener.close()
    for _ in range(LINGER_POLLS):
        if not server.server_state.connections:
            return
        await asyncio.sleep(LINGER_SECONDS / LINGER_POLLS)
