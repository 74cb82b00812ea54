"""FastAPI with the middlewares that services usually put together, each in its best sensible setting.

Runs in the environment of `bench.http_peers` and imports nothing of ours. What costs most in such stacks is avoided:
no middleware of Starlette's `BaseHTTPMiddleware`, the access log is written as JSON by orjson without the standard
library's records, limits are counted in memory, and metrics are labelled by route only.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson
import structlog
from asgi_correlation_id import CorrelationIdMiddleware, correlation_id  # type: ignore[import-not-found]
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from prometheus_fastapi_instrumentator import Instrumentator  # type: ignore[import-not-found]
from slowapi import Limiter  # type: ignore[import-not-found]
from slowapi.middleware import SlowAPIASGIMiddleware  # type: ignore[import-not-found]
from slowapi.util import get_remote_address  # type: ignore[import-not-found]

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(serializer=orjson.dumps),
    ],
    logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger()


class AccessLogMiddleware:
    """One line for each request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, sent_bytes, started = 500, 0, time.perf_counter()

        async def send_counted(message: Any) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            log.info(
                "request",
                request_id=correlation_id.get(),
                method=scope["method"],
                path=scope["path"],
                route=getattr(scope.get("route"), "path", None),
                status=status,
                bytes=sent_bytes,
                duration_ms=round((time.perf_counter() - started) * 1000, 3),
                client=scope["client"][0] if scope.get("client") else None,
            )


app = FastAPI()
app.state.limiter = Limiter(key_func=get_remote_address, default_limits=["1000000/second"])
app.add_middleware(SlowAPIASGIMiddleware)
app.add_middleware(CORSMiddleware, allow_origins=["https://app.example.com"])
app.add_middleware(AccessLogMiddleware)
app.add_middleware(CorrelationIdMiddleware)
Instrumentator(should_group_status_codes=False).instrument(app).expose(app)


@app.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, object]:
    """One item."""
    return {"id": item_id, "name": "item"}
