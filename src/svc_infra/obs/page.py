"""The page that Prometheus reads: what it shows, in which of the two formats, and to whom."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from ipaddress import ip_address, ip_network

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from svc_infra.obs.metrics import Metrics
from svc_infra.obs.workers import Workers

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")


class FixedRoute(Route):
    """A route at one path without parameters; requests to other paths pass it at a fraction of the usual cost.

    Ours come before the application's, so every request passes them.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether it answers a request."""
        return super().matches(scope) if scope["path"].endswith(self.path) else (Match.NONE, {})


class Readers:
    """Who may read the metrics.

    With a token whoever has it. Without one, those who ask directly and from one of the networks: a request that a
    proxy has passed on comes from outside, whatever its address looks like.

    Args:
        networks: Such as `10.0.0.0/8`.
        token: Given as `Authorization: Bearer <token>`.
        open_to_all: Neither is asked for.
    """

    def __init__(self, networks: Sequence[str], token: str | None, *, open_to_all: bool) -> None:
        self._networks = [ip_network(network) for network in networks]
        self._token = None if token is None else f"Bearer {token}".encode()
        self._open_to_all = open_to_all

    def check(self, request: Request) -> None:
        """Refuse a request.

        Raises:
            HTTPException: 401, the token is missing or wrong; 404, it comes from outside.
        """
        if self._token is not None:
            sent = request.headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(sent, self._token):
                raise HTTPException(401, "The metrics' token is missing or wrong.", {"www-authenticate": "Bearer"})
        elif not self._open_to_all and not self._is_inside(request):
            raise HTTPException(404)

    def _is_inside(self, request: Request) -> bool:
        if request.client is None or any(name in request.headers for name in _FORWARDED):
            return False
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


class Shown(Collector):
    """All metrics of one app, without the time at which each series began, which would double their number.

    Args:
        metrics: What this process has counted.

    Attributes:
        workers: Those whose counts belong to it; None where there is only this process.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.workers: Workers | None = None

    def collect(self) -> Iterable[Metric]:
        """Every metric that has a series."""
        found = self._metrics.registry.collect() if self.workers is None else self.workers.totals().metrics()
        for metric in found:
            if metric.type in ("counter", "histogram", "summary"):
                metric.samples = [sample for sample in metric.samples if sample.name != f"{metric.name}_created"]
            if metric.samples:
                yield metric


def metrics_page(shown: Shown, readers: Readers) -> Callable[[Request], Awaitable[Response]]:
    """Answers with the metrics in Prometheus' text format, or in OpenMetrics' where that is asked for.

    A scrape of many series runs beside the event loop, and in a thread of its own: those that plain handlers run in are
    all taken just when somebody wants to see why.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics-page")

    async def page(request: Request) -> Response:
        readers.check(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        loop, context = asyncio.get_running_loop(), copy_context()
        body = await loop.run_in_executor(thread, context.run, encode, shown)
        return Response(body, headers={"content-type": content_type})

    return page
