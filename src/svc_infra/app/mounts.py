"""Apps that are mounted in an app."""

from __future__ import annotations

from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette

from svc_infra.app.problems import add_problems
from svc_infra.wiring import share_wiring


def adopt_mounts(app: Starlette) -> None:
    """Make the apps mounted in an app part of it: they use its rooms, and their errors are problems.

    An app that has rooms of its own is left as it is.
    """
    for route in iter_route_contexts(app.routes):
        mounted = getattr(route.original_route, "app", None)
        if isinstance(mounted, Starlette) and share_wiring(app, mounted):
            add_problems(mounted)
            adopt_mounts(mounted)
