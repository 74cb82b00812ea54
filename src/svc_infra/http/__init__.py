"""Outbound HTTP: bounded, and unable to reach what a stranger's address must not reach.

- `client`: `HttpClient`, its limits and its `Response`
- `calls`: what is counted and traced of a call
- `guard`: which addresses may be called; resolves a name once and connects to what it checked
- `errors`: what HTTP clients raise, as the library's errors
- `add`: `add_http`
"""

from svc_infra.http.add import add_http
from svc_infra.http.client import HttpClient, Response

__all__ = ["HttpClient", "Response", "add_http"]
