"""What the edge and the single middlewares read from a request's scope."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from itertools import chain
from typing import Any, NamedTuple, Protocol

from starlette.routing import Mount, Route
from starlette.types import Scope

from svc_infra.obs.http_metrics import UNMATCHED
from svc_infra.obs.logging import Answered, log_request
from svc_infra.obs.tracing import TraceParent, parse_traceparent

EDGE = "svc_infra.edge"
"""The key of a request's `AtEdge` in its scope; whoever finds it need not do the edge's work again."""
MAX_LENGTH_DIGITS = 18  # a body of more bytes is too large by any limit, and so are its first digits

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REQUEST_ID_HEADER, _TRACEPARENT, _LENGTH = b"x-request-id", b"traceparent", b"content-length"
_READ = frozenset([_REQUEST_ID_HEADER, _TRACEPARENT, _LENGTH])


class AtEdge(Protocol):
    """A request as the edge has it.

    Attributes:
        root_path: The scope's, before any mount has added to it.
        answer_headers: Each gives further headers of whatever answer begins, also of the edge's own.
    """

    root_path: str
    answer_headers: list[Callable[[], list[tuple[bytes, bytes]]]]


class Sent(NamedTuple):
    """What a client says about its request in the headers that the edge understands."""

    request_id: str
    trace: TraceParent | None
    body_bytes: int
    headers: int
    header_bytes: int


def read_headers(headers: Collection[tuple[bytes, bytes]]) -> Sent:
    """Read the headers; a value that is missing, repeated or not well formed counts as not sent."""
    header_bytes = sum(map(len, chain.from_iterable(headers)))
    if _READ.isdisjoint(dict(headers)):
        return Sent("", None, 0, len(headers), header_bytes)
    found = [header for header in headers if header[0] in _READ]
    request_id, traceparent = _only(_REQUEST_ID_HEADER, found), _only(_TRACEPARENT, found)
    length = dict(found).get(_LENGTH, b"")
    return Sent(
        request_id if _REQUEST_ID.fullmatch(request_id) else "",
        parse_traceparent(traceparent) if traceparent else None,
        int(length[:MAX_LENGTH_DIGITS]) if length.isdigit() else 0,
        len(headers),
        header_bytes,
    )


def _only(name: bytes, headers: Collection[tuple[bytes, bytes]]) -> str:
    """The value of a header that must not be repeated; empty when it is."""
    values = [value for key, value in headers if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def client_ip(scope: Scope) -> str:
    """The peer's address; empty where there is none, as on a Unix socket."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def path_in_app(scope: Scope) -> str:
    """The path as the app's routes know it: without that under which the app is served or mounted."""
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    if not root_path or not path.startswith(root_path):  # a proxy may have taken it off
        return path
    rest = path[len(root_path) :]
    return rest if rest[:1] == "/" else path


def route_template(scope: Scope, root_path: str) -> str:
    """The template of the route that answered, such as `/users/{id}`; one constant where none did.

    Args:
        scope: The request's scope, after the app has answered.
        root_path: The scope's `root_path` before; what mounts have added to it belongs to the template.
    """
    fastapi = scope.get("fastapi")
    included = fastapi.get("effective_route_context") if fastapi else None  # with the prefix of `include_router`
    route = scope.get("route") or getattr(included, "starlette_route", None) or _starlette_route(scope)
    if route is None:
        return UNMATCHED
    if included is not None and included.original_route is route:
        route = included
    template = "/{path}" if isinstance(route, Mount) else getattr(route, "path_format", None) or UNMATCHED
    mounted = str(scope.get("root_path", ""))[len(root_path) :]
    return _mount_template(mounted, scope.get("path_params", {}), template) + template if mounted else template


def _starlette_route(scope: Scope) -> Any:
    """Starlette's own routes leave only their endpoint in the scope of a FastAPI app."""
    endpoint, app = scope.get("endpoint"), scope.get("app")
    if endpoint is None or app is None:
        return None
    for route in app.routes:
        if isinstance(route, Mount) and route.app is endpoint:
            return route
        if isinstance(route, Route) and route.endpoint == endpoint and route.path_regex.match(scope["path"]):
            return route
    return None


def _mount_template(mounted: str, params: dict[str, Any], template: str) -> str:
    names = {str(value): name for name, value in params.items() if f"{{{name}}}" not in template}
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in mounted.split("/"))


def log_answered(
    scope: Scope, route: str, status: int, sent_bytes: int, seconds: float, first_byte_seconds: float | None = None
) -> None:
    """Write the access line of an answered request."""
    method, client = scope.get("method", "WEBSOCKET"), scope.get("client")
    client_ip = str(client[0]) if client else ""
    log_request(Answered(method, scope["path"], route, status, sent_bytes, seconds, first_byte_seconds, client_ip))
