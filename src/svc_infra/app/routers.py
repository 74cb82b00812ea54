"""The global router, and the discovery of an application's own routers."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from fastapi import APIRouter, FastAPI
from starlette.routing import Match
from starlette.types import Scope

from svc_infra.app.simple_route import SimpleRoute
from svc_infra.errors import ConfigurationError


class GlobalRouter(APIRouter):
    """The global router, which every app includes, also those that have no use for it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Which of its routes answers."""
        return super().matches(scope) if self.routes else (Match.NONE, {})


router = GlobalRouter(route_class=SimpleRoute)
"""Its routes are part of every app that `create_app` makes, whether they are added before or after."""


def include_package(app: FastAPI, package: str) -> None:
    """Include the `router` of each module of a package, in alphabetical order.

    Modules whose name starts with `_` are left out. A module may use the global `router`, which is included already.

    Args:
        app: The app.
        package: Its import path, such as `shop.routers`.

    Raises:
        ConfigurationError: A module cannot be imported or has no `router`; the message names it.
    """
    root = _imported(package)
    for name in sorted(module.name for module in iter_modules(getattr(root, "__path__", []))):
        if name.startswith("_"):
            continue
        module = _imported(f"{package}.{name}")
        found = getattr(module, "router", None)
        if not isinstance(found, APIRouter):
            mend = "define one, or start the module's name with an underscore"
            raise ConfigurationError(f"{package}.{name} has no APIRouter called `router`: {mend}.")
        if found is not router:
            app.include_router(found)


def _imported(name: str) -> object:
    try:
        return import_module(name)
    except Exception as error:
        raise ConfigurationError(f"Routers: {name} could not be imported ({type(error).__name__}: {error}).") from error
