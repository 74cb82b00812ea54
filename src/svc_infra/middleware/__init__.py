"""Middleware: the concerns of the edge as pure ASGI classes for `app.add_middleware`, in any app.

- `request_id`, `logging`, `rate_limit`, `security_headers`, `proxies`: one class each
- `http`: `rate_limit`, the limits of single routes · `_limiter`: the limits of one request
- `rate_limit_store`: where they are counted · `gcra`: the algorithm
- `conditional`: ETags and preconditions (RFC 9110) · `problem`: every error as an answer (RFC 9457)
- `_scope`: what all of them read from a request · `_websocket`: how a handshake is refused
"""

from svc_infra.middleware.logging import LoggingMiddleware
from svc_infra.middleware.proxies import TrustedProxiesMiddleware
from svc_infra.middleware.rate_limit import RateLimitMiddleware
from svc_infra.middleware.request_id import RequestIdMiddleware
from svc_infra.middleware.security_headers import SecurityHeadersMiddleware

__all__ = [
    "LoggingMiddleware",
    "RateLimitMiddleware",
    "RequestIdMiddleware",
    "SecurityHeadersMiddleware",
    "TrustedProxiesMiddleware",
]
