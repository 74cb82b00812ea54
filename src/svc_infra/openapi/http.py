"""Reads an app's routes, and serves its pages where no route of the application's own answers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from svc_infra.errors import NotFoundError
from svc_infra.middleware.conditional import Conditional
from svc_infra.middleware.rate_limit import RateLimitMiddleware
from svc_infra.openapi.assets import Assets
from svc_infra.openapi.conditions import document_conditions
from svc_infra.openapi.operations import Operation, operation_id
from svc_infra.openapi.pages import Pages
from svc_infra.openapi.problems import find_problem_type, problem_types
from svc_infra.openapi.schema import Address, document_problems
from svc_infra.route_policy import PUBLIC, declares
from svc_infra.wiring import wiring_of

Endpoint = Callable[[Request], Awaitable[Response]]

FONT = "system-ui, sans-serif"
PAGE_POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data:",  # the icons inside of Swagger UI's style sheet
        # The digest of nothing: ReDoc makes style elements that are empty, and fills them through the CSS object model.
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
        "worker-src 'self' blob:",  # ReDoc's search
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)


def operations(app: FastAPI) -> Iterator[Operation]:
    """Every operation that the app serves now, those of included routers too."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            for method in sorted(route.methods or ()):
                yield Operation(
                    method=method,
                    path=str(route.path),
                    documented_path=str(route.path_format),
                    operation_id=_name(route, method) if route.include_in_schema else None,
                    home=f"{getattr(route.endpoint, '__module__', '?')}.{getattr(route.endpoint, '__qualname__', '?')}",
                )


def document(app: FastAPI) -> None:
    """Give the app's OpenAPI document stable operation ids and problems as the bodies of its errors."""
    if isinstance(app.router.generate_unique_id_function, DefaultPlaceholder):
        app.router.generate_unique_id_function = _route_name
    generate = app.openapi
    documented: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal documented
        with warnings.catch_warnings():
            # FastAPI gives all methods of one route the same id; they get their own below.
            warnings.filterwarnings("ignore", "Duplicate Operation ID")
            schema = generate()
        if schema is not documented:
            for operation in operations(app):
                if operation.operation_id is not None:
                    path = schema["paths"][operation.documented_path]
                    path[operation.method.lower()]["operationId"] = operation.operation_id
            document_problems(schema, dict(_declared(app)))
            document_conditions(schema, _conditional(app))
            documented = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def serve_pages(app: FastAPI) -> None:
    """Serve the landing page, the problem pages and, where the app has an OpenAPI document, the API reference.

    The landing page answers what nothing else does. The others come before the application's catch-alls, such as
    static files mounted at `/`, and give way to a route of the application that has the very same path. The pages of
    FastAPI's that load their scripts from elsewhere are taken away.
    """
    endpoints = _Endpoints(app)
    app.router.routes[:] = [route for route in app.routes if not _is_fastapi_page(route, app)]
    app.router.routes.append(_PageRoutes(app, endpoints.routes()))
    landing = _PageRoutes(app, [Route("/", endpoints.landing)])
    app.router.default = Router([landing], default=app.router.default, redirect_slashes=False)


@declares(PUBLIC)
class _PageRoutes(BaseRoute):
    """Pages as one route, so that requests to anything else pass them in one step."""

    def __init__(self, app: FastAPI, routes: list[Route]) -> None:
        self.routes = routes
        self._app = app
        self._any = re.compile("|".join({re.escape(f"/{route.path.split('/')[1]}") for route in routes}))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and self._any.search(scope["path"]):
            for route in self.routes:
                match, child = route.matches(scope)
                if match is not Match.NONE and not self._is_taken(route.path, scope["method"]):
                    return match, {**child, "route": route}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["route"].handle(scope, receive, send)

    def _is_taken(self, path: str, method: str) -> bool:
        return any(
            _blank(str(other.path)) == _blank(path) and method in (other.methods or (method,))
            for other in iter_route_contexts(self._app.routes)
            if isinstance(other.original_route, Route)
        )


class _Endpoints:
    """What serves each page, with addresses below the path that the app is mounted under."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.assets = Assets()

    def routes(self) -> list[Route]:
        pages: dict[str | None, Endpoint] = {
            "/problems": self.problems,
            "/problems/{code}": self.problem,
            "/_assets/{file}": self.asset,
        }
        if self.app.openapi_url:
            pages |= {self.app.docs_url: self.swagger, self.app.redoc_url: self.redoc}
            if self.app.docs_url:
                pages[self.app.swagger_ui_oauth2_redirect_url] = self.signing_in
        return [Route(path, endpoint) for path, endpoint in pages.items() if path]

    async def landing(self, request: Request) -> HTMLResponse:
        settings = wiring_of(self.app).settings
        pages = {route.path for route in self.routes()}
        links = {
            "API reference, Swagger UI": self.app.docs_url,
            "API reference, ReDoc": self.app.redoc_url,
            "OpenAPI document": self.app.openapi_url,
            "Problems": "/problems",
            "Live": "/_ops/live",
            "Ready": "/_ops/ready",
            "Started": "/_ops/startup",
            "Metrics": settings.metrics.path,
        }
        served = {*pages, *(route.path for route in iter_route_contexts(self.app.routes))}
        html = self._pages(request).landing(
            name=settings.app.name,
            facts=f"Release {settings.app.release} · {settings.environment}",
            links={label: path for label, path in links.items() if path is not None and path in served},
        )
        return _answer(html)

    async def problems(self, request: Request) -> HTMLResponse:
        return _answer(self._pages(request).problems(problem_types()))

    async def problem(self, request: Request) -> HTMLResponse:
        code = request.path_params["code"]
        kind = find_problem_type(code)
        if kind is None:
            raise NotFoundError("Problem type", code)
        return _answer(self._pages(request).problem(kind))

    async def swagger(self, request: Request) -> HTMLResponse:
        pages = self._pages(request)
        options = {
            "url": f"{pages.base}{self.app.openapi_url}",
            "deepLinking": True,
            "showExtensions": True,
            "showCommonExtensions": True,
            "validatorUrl": None,
            "oauth2": self.app.swagger_ui_init_oauth,
            "oauth2RedirectPath": f"{pages.base}{self.app.swagger_ui_oauth2_redirect_url or ''}",
            **(self.app.swagger_ui_parameters or {}),
        }
        styles, scripts = ["swagger-ui.css"], ["swagger-ui-bundle.js", "swagger.js"]
        return _answer(pages.reference(title=self.app.title, styles=styles, scripts=scripts, options=options))

    async def redoc(self, request: Request) -> HTMLResponse:
        pages = self._pages(request)
        options = {
            "url": f"{pages.base}{self.app.openapi_url}",
            "nativeScrollbars": True,
            "theme": {"typography": {"fontFamily": FONT, "headings": {"fontFamily": FONT}}},
        }
        scripts = ["redoc.standalone.js", "redoc.js"]
        return _answer(pages.reference(title=self.app.title, styles=[], scripts=scripts, options=options))

    async def signing_in(self, request: Request) -> HTMLResponse:
        return _answer(self._pages(request).signing_in())

    async def asset(self, request: Request) -> Response:
        return await self.assets.get_response(request.path_params["file"], request.scope)

    def _pages(self, request: Request) -> Pages:
        return Pages(base=request.scope.get("root_path", "").rstrip("/"), version=self.assets.version)


def _answer(html: str) -> HTMLResponse:
    return HTMLResponse(html, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})


def _is_fastapi_page(route: BaseRoute, app: FastAPI) -> bool:
    is_fastapi_s = getattr(getattr(route, "endpoint", None), "__module__", None) == "fastapi.applications"
    return is_fastapi_s and getattr(route, "path", None) != app.openapi_url


def _blank(path: str) -> str:
    """A path whose parameters have no names."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _declared(app: FastAPI) -> Iterator[tuple[Address, set[int]]]:
    """The statuses that what an app or a route declares may answer with."""
    middleware: list[object] = [one.cls for one in app.user_middleware]
    limited = {429} if RateLimitMiddleware in middleware else set()
    conditional = set(_conditional(app))
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute):
            for method in route.methods or ():
                address = str(route.path_format), method.lower()
                conditions = {412, 304 if method in ("GET", "HEAD") else 428} if address in conditional else set()
                yield address, limited | conditions


def _conditional(app: FastAPI) -> Iterator[Address]:
    """The operations that compare what a request expects with what there is."""
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute) and _depends_on(route.dependant, Conditional):
            for method in route.methods or ():
                yield str(route.path_format), method.lower()


def _depends_on(dependant: Dependant, call: Callable[..., Any]) -> bool:
    return any(one.call is call or _depends_on(one, call) for one in dependant.dependencies)


def _name(route: RouteContext, method: str) -> str:
    """The id that was given to the route; where we made one for all of its methods, each method's own."""
    if route.operation_id is not None or route.unique_id != _route_name(route):
        return str(route.operation_id or route.unique_id)
    return operation_id([method], str(route.path_format))


def _route_name(route: Any) -> str:
    return operation_id(route.methods, route.path_format)
