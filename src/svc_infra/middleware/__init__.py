"""Middleware: the concerns of the edge as pure ASGI classes for `app.add_middleware`, in any app.

- `request_id`, `logging`, `rate_limit`, `security_headers`, `proxies`: one class each
- `hosts`, `cors`: rules that only the edge applies · `problem`: every error as an answer (RFC 9457)
- `gcra`: the algorithm of the rate limit · `_scope`: what all of them read · `_websocket`: how one is refused
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
