"""What stands right around the routes: one step for a request without a body or a range, more for the others."""

from __future__ import annotations

from collections.abc import Awaitable
from operator import itemgetter

from starlette.types import ASGIApp, Receive, Scope, Send

from svc_infra.app.bodies import Bodies
from svc_infra.app.ranges import Ranges

_CHECKED = frozenset([b"content-type", b"range"])
_NAME = itemgetter(0)


class Checks:
    """Sends requests that have a header which `Bodies` or `Ranges` looks at through these, all others past them.

    Args:
        app: The routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bodies = Bodies(app)
        self._ranges = Ranges(self._bodies)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass a request on; no coroutine of its own, which every request would pay for."""
        if scope["type"] != "http" or _CHECKED.isdisjoint(map(_NAME, scope["headers"])):
            return self._app(scope, receive, send)
        if b"range" in map(_NAME, scope["headers"]):
            return self._ranges(scope, receive, send)
        return self._bodies(scope, receive, send)
