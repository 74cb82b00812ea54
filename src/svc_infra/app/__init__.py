"""Makes apps: one factory, the global router, and problems as the answer to every error.

- `factory`: `create_app`, `easy_service_app`
- `routers`: the global `router`, `include_package`
- `simple_route`: `SimpleRoute`, which answers with half of the work where a function takes only parameters
- `checks`: what stands around the routes · `bodies`: what a body must be · `ranges`: refused ranges, as problems
- `problems`: errors that routes raise, as answers
- `validation`: what a 422 says about each value
- `mounts`: mounted apps use the rooms of the app around them
- `logging`: `setup_logging`
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc_infra.app.factory import create_app, easy_service_app
    from svc_infra.app.routers import include_package, router
    from svc_infra.app.simple_route import SimpleRoute

__all__ = ["SimpleRoute", "create_app", "easy_service_app", "include_package", "router"]

_HOMES = {
    "SimpleRoute": "simple_route",
    "create_app": "factory",
    "easy_service_app": "factory",
    "include_package": "routers",
    "router": "routers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
