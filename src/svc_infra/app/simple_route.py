"""Routes that are simple enough to be answered with half of the work.

FastAPI solves the dependencies of every request anew, also where a route has none, and makes a second response to carry
headers that nobody sets. A coroutine function that takes nothing but path and query parameters needs neither. Whatever
is not as expected goes FastAPI's own way from the start: a request that is not valid, an app under telemetry, a route
that is included elsewhere, a FastAPI that was not tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import fastapi
from fastapi import FastAPI, Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import EndpointContext, ResponseValidationError
from fastapi.routing import APIRoute, serialize_response
from fastapi.utils import is_body_allowed_for_status_code

TESTED_FASTAPI = "0.165."
"""The functions used here are no public interface: on another version every route is FastAPI's own."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_ALONE = {"path_params", "query_params", "name", "call", "use_cache", "path", "scope"}
"""What the declaration of a simple route may consist of."""


class SimpleRoute(APIRoute):
    """A route that takes the short way where its function allows it, and FastAPI's own everywhere else."""

    only_in: FastAPI | None = None
    """The app whose own routes this one is among; nothing that an including router adds applies to it there."""

    def get_route_handler(self) -> Handler:
        """The function that answers a request."""
        full = super().get_route_handler()
        if not fastapi.__version__.startswith(TESTED_FASTAPI) or not _is_simple(self):
            return full
        dependant, call, path_params = self.dependant, self.endpoint, self.dependant.path_params
        query_params = dependant.query_params
        produce = self._producer()

        async def handler(request: Request) -> Response:
            scope = request.scope
            if (
                self.only_in is None
                or scope.get("app") is not self.only_in
                or "effective_route_context" in scope.get("fastapi", ())
                or "fastapi.telemetry" in scope
                or dependant.dependencies  # somebody has added one afterwards
            ):
                return await full(request)
            values, errors = request_params_to_args(path_params, scope["path_params"])
            if query_params:
                more, wrong = request_params_to_args(query_params, request.query_params)
                values.update(more)
                errors += wrong
            if errors:
                return await full(request)
            result = await call(**values)
            return result if isinstance(result, Response) else await produce(request, result)

        return handler

    def _producer(self) -> Callable[[Request, Any], Awaitable[Response]]:
        field, status_code = self.response_field, self.status_code
        given: dict[str, Any] = {} if status_code is None else {"status_code": status_code}
        kind = self.response_class
        response_class = kind.value if isinstance(kind, DefaultPlaceholder) else kind
        dump_json = field is not None and isinstance(kind, DefaultPlaceholder)
        options: dict[str, Any] = {
            "field": field,
            "include": self.response_model_include,
            "exclude": self.response_model_exclude,
            "by_alias": self.response_model_by_alias,
            "exclude_unset": self.response_model_exclude_unset,
            "exclude_defaults": self.response_model_exclude_defaults,
            "exclude_none": self.response_model_exclude_none,
            "dump_json": dump_json,
        }

        async def produce(request: Request, result: Any) -> Response:
            try:
                content = await serialize_response(response_content=result, **options)
            except ResponseValidationError as error:
                context = _context(self, request)
                raise ResponseValidationError(error.errors(), body=error.body, endpoint_ctx=context) from None
            if dump_json:
                response = Response(content, media_type="application/json", **given)
            else:
                response = response_class(content, **given)
            if not is_body_allowed_for_status_code(response.status_code):
                response.body = b""
            return response

        return produce


def shorten(app: FastAPI) -> None:
    """Let the routes that are the app's own take the short way, where they can."""
    for route in app.router.routes:
        if isinstance(route, SimpleRoute):
            route.only_in = app


def _is_simple(route: APIRoute) -> bool:
    declared = {name for name in route.dependant.__slots__ if getattr(route.dependant, name)}
    return (
        declared <= _ALONE
        and inspect.iscoroutinefunction(route.endpoint)
        and route.dependant.call is route.endpoint
        and route.stream_item_field is None
        and not route.is_json_stream
    )


def _context(route: APIRoute, request: Request) -> EndpointContext:
    code = inspect.unwrap(route.endpoint).__code__
    mounted = request.scope.get("root_path", "").rstrip("/")
    return {
        "path": f"{request.method} {mounted}{route.dependant.path}",
        "function": route.endpoint.__name__,
        "file": code.co_filename,
        "line": code.co_firstlineno,
    }
