"""Middleware: what every request passes, as pure ASGI for http, websockets and streams.

- `_edge`: `EdgeMiddleware`, all defaults of `create_app` in one layer · `_websocket`: its part in websockets
- `problem`: every error as an answer (RFC 9457)
- `request_id`, `logging`, `rate_limit`: the same and more as classes for `app.add_middleware`
- `http`: `rate_limit`, the limits of single routes · `_limiter`: the limits of one request
- `rate_limit_store`: where they are counted · `gcra`: the algorithm · `_scope`: what all of them read from a request
"""

from svc_infra.middleware.logging import LoggingMiddleware
from svc_infra.middleware.rate_limit import RateLimitMiddleware
from svc_infra.middleware.request_id import RequestIdMiddleware

__all__ = ["LoggingMiddleware", "RateLimitMiddleware", "RequestIdMiddleware"]
