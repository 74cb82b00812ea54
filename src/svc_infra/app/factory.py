"""Makes apps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Lifespan

from svc_infra.app.checks import Checks
from svc_infra.app.mounts import adopt_mounts
from svc_infra.app.problems import add_problems, leave_to_the_edge
from svc_infra.app.routers import include_package, router
from svc_infra.app.simple_route import SimpleRoute
from svc_infra.config import Environment, Settings
from svc_infra.edge.add import add_edge
from svc_infra.edge.edge import EdgeMiddleware
from svc_infra.errors import ConfigurationError
from svc_infra.obs.add import add_observability
from svc_infra.openapi.add import add_openapi
from svc_infra.ops.add import add_probes
from svc_infra.wiring import wiring_of

__all__ = ["create_app", "easy_service_app", "router"]


class Service(FastAPI):
    """A FastAPI app inside the edge."""

    def build_middleware_stack(self) -> ASGIApp:
        """The whole stack, outermost first: the edge, what `add_middleware` added (last added first), the checks of
        bodies and ranges, the routes.

        Whatever escapes from the routes or from a user's middleware reaches the edge, which answers with a problem.
        """
        adopt_mounts(self)
        stack = super().build_middleware_stack()
        if isinstance(stack, ServerErrorMiddleware) and stack.handler is leave_to_the_edge:
            stack = stack.app  # it would only pass on what the edge answers
        return EdgeMiddleware(stack, wiring=wiring_of(self))


def create_app(
    *,
    name: str | None = None,
    release: str | None = None,
    settings: Settings | None = None,
    lifespan: Lifespan[Any] | None = None,
    routers: Iterable[APIRouter] = (),
    routers_package: str | None = None,
    observability: bool = True,
    probes: bool = True,
    docs: bool | None = None,
    **fastapi: Any,
) -> FastAPI:
    """A FastAPI app that is ready for production; nothing in it is shared with another app but the global `router`.

    A FastAPI or Starlette app that is mounted in it uses its rooms and answers with problems too, unless it has rooms
    of its own. As in FastAPI, its lifespan is not run.

    Args:
        name: The service's name; `APP_NAME` when left out.
        release: The release that runs; `APP_RELEASE` when left out.
        settings: Everything else that can be configured; read from the environment when left out.
        lifespan: The application's own; runs inside those of the rooms.
        routers: Included after the global `router`.
        routers_package: A package whose modules each have a `router` to include.
        observability: Serve metrics.
        probes: Serve `/_ops/live`, `/_ops/ready` and `/_ops/startup`.
        docs: Serve the OpenAPI document and its viewers; `APP_DOCS` when left out, and without that all but prod.
        **fastapi: Passed to `FastAPI`.

    Raises:
        ConfigurationError: A setting is wrong, or a router's module cannot be imported.
    """
    if fastapi.get("debug"):
        raise ConfigurationError("debug answers with tracebacks instead of problems: leave it out, local shows errors.")
    settings = _named(settings or Settings(), name, release)
    if not _has_docs(settings, docs):
        fastapi["openapi_url"] = None
    fastapi.setdefault("telemetry", {"tracing": False, "metrics": False, "logs": False})  # the edge measures
    app = Service(**{"title": settings.app.name, "version": settings.app.release, **fastapi}, lifespan=lifespan)
    app.router.route_class = SimpleRoute
    app.user_middleware.append(Middleware(Checks))  # the innermost: `add_middleware` puts its own before
    wiring_of(app, settings=settings)
    add_problems(app)
    add_openapi(app)
    add_edge(app)
    if observability:
        add_observability(app)
    if probes:
        add_probes(app)
    if settings.security.strict_routes:
        from svc_infra.security.access.add import add_strict_routes  # an app without accounts does not load them

        add_strict_routes(app)
    for part in (router, *routers):
        app.include_router(part)
    if routers_package is not None:
        include_package(app, routers_package)
    return app


def easy_service_app(*, name: str, release: str, **options: Any) -> FastAPI:
    """The app that `create_app` makes, for a service that says its name and release in code.

    Args:
        name: The service's name.
        release: The release that runs.
        **options: Passed to `create_app`.
    """
    return create_app(name=name, release=release, **options)


def _named(settings: Settings, name: str | None, release: str | None) -> Settings:
    said = {key: value for key, value in (("name", name), ("release", release)) if value is not None}
    return settings.model_copy(update={"app": settings.app.model_copy(update=said)})


def _has_docs(settings: Settings, docs: bool | None) -> bool:
    if docs is None:
        docs = settings.app.docs
    return docs if docs is not None else settings.environment is not Environment.PROD
