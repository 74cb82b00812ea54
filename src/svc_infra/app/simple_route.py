"""Routes that are simple enough to be answered with half of the work.

FastAPI solves the dependencies of every request anew, also where a route has none, looks up anew how each parameter is
declared, and makes a second response to carry headers that nobody sets. A coroutine function that takes nothing but
path and query parameters needs none of that.

Whatever is not as expected goes FastAPI's own way: a function that takes more, an app under FastAPI's telemetry, a tool
that has put itself in the place of FastAPI's functions, a FastAPI that was not tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import fastapi
from fastapi import Request, Response, routing
from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse

TESTED_FASTAPI = "0.165."
"""Functions used here are no public interface: on another version every route is FastAPI's own."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Reader = Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[Any]]]

_ALONE = {"path_params", "query_params", "name", "call", "use_cache", "path", "scope"}
"""What the declaration of a simple route may consist of."""
_REPLACEABLE = ("solve_dependencies", "run_endpoint_function", "serialize_response")
"""FastAPI's steps that the short way leaves out or calls itself; tracing tools put their own in their place."""
_FASTAPI = str(Path(fastapi.__file__).parent)


class SimpleRoute(APIRoute):
    """A route that takes the short way where its function allows it, and FastAPI's own everywhere else.

    The routes of `create_app` and of the global router are of this class; `APIRouter(route_class=SimpleRoute)` makes
    those of another router so.
    """

    def get_route_handler(self) -> Handler:
        """The function that answers a request."""
        full = super().get_route_handler()
        if not fastapi.__version__.startswith(TESTED_FASTAPI) or not _is_fastapis(full):
            return full
        included = routing._effective_route_context_var.get()  # the same route, as the router that includes it sees it
        route = self if included is None or included.original_route is not self else included
        return _shortened(route, full) if _is_simple(route) else full


def _is_simple(route: Any) -> bool:
    dependant = route.dependant
    declared = {name for name in dependant.__slots__ if getattr(dependant, name)}
    return (
        declared <= _ALONE
        and inspect.iscoroutinefunction(route.endpoint)
        and dependant.call is route.endpoint
        and not (inspect.isclass(kind := _response_class(route)) and issubclass(kind, EventSourceResponse))
        and all(_is_fastapis(getattr(routing, name)) for name in _REPLACEABLE)
    )


def _shortened(route: Any, full: Handler) -> Handler:
    dependant, call = route.dependant, route.endpoint
    read_path, read_query = _reader(dependant.path_params), _reader(dependant.query_params)
    steps = vars(routing)
    solve, run, serialize = (steps[name] for name in _REPLACEABLE)
    produce = _producer(route)

    async def handler(request: Request) -> Response:
        if (
            "fastapi.telemetry" in request.scope
            or dependant.call is not call  # somebody has wrapped it afterwards
            or dependant.dependencies  # somebody has added one afterwards
            or steps["solve_dependencies"] is not solve
            or steps["run_endpoint_function"] is not run
            or steps["serialize_response"] is not serialize
        ):
            return await full(request)
        values, errors = read_path(request.path_params) if read_path else ({}, [])
        if read_query:
            more, wrong = read_query(request.query_params)
            values.update(more)
            errors += wrong
        if errors:
            raise RequestValidationError(errors, endpoint_ctx=_context(dependant, request))
        result = await call(**values)
        return result if isinstance(result, Response) else await produce(request, result)

    return handler


def _reader(fields: list[Any]) -> Reader | None:
    """The function that reads these parameters of a request; None where there are none."""
    from fastapi._compat import Undefined, field_annotation_is_sequence
    from fastapi.dependencies.utils import (
        _get_param_aliases,
        _get_param_model,
        _validate_value_with_model_field,
        request_params_to_args,
    )

    if not fields:
        return None
    aliases = {field.name: _get_param_aliases(field) for field in fields}
    for field in fields:
        is_model = _get_param_model(field) is not None
        if is_model or field_annotation_is_sequence(field.field_info.annotation) or len(aliases[field.name]) > 1:
            return partial(request_params_to_args, fields)
    plan = [(field, aliases[field.name][0][1], field.field_info.in_.value) for field in fields]

    def read(received: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        values: dict[str, Any] = {}
        errors: list[Any] = []
        for field, alias, where in plan:
            value = received.get(alias)
            if value is None:
                loc = (where, alias)
                value, wrong = _validate_value_with_model_field(field=field, value=Undefined, values=values, loc=loc)
            else:
                value, wrong = field.validate(value, values, loc=(where, alias))
            if wrong:
                errors += wrong
            else:
                values[field.name] = value
        return values, errors

    return read


def _producer(route: Any) -> Callable[[Request, Any], Awaitable[Response]]:
    """The function that makes a response of what the endpoint has returned."""
    from fastapi.utils import is_body_allowed_for_status_code

    dependant, serialize, response_class = route.dependant, routing.serialize_response, _response_class(route)
    given: dict[str, Any] = {"background": None}
    if route.status_code:
        given["status_code"] = route.status_code
    dump_json = route.response_field is not None and isinstance(route.response_class, DefaultPlaceholder)
    options: dict[str, Any] = {
        "field": route.response_field,
        "include": route.response_model_include,
        "exclude": route.response_model_exclude,
        "by_alias": route.response_model_by_alias,
        "exclude_unset": route.response_model_exclude_unset,
        "exclude_defaults": route.response_model_exclude_defaults,
        "exclude_none": route.response_model_exclude_none,
        "dump_json": dump_json,
    }

    async def produce(request: Request, result: Any) -> Response:
        try:
            content = await serialize(response_content=result, **options)
        except ResponseValidationError as error:
            context = _context(dependant, request)
            raise ResponseValidationError(error.errors(), body=error.body, endpoint_ctx=context) from None
        if dump_json:
            response = Response(content, media_type="application/json", **given)
        else:
            response = response_class(content, **given)
        if not is_body_allowed_for_status_code(response.status_code):
            response.body = b""
        return response

    return produce


def _response_class(route: Any) -> type[Response]:
    kind = route.response_class
    chosen: type[Response] = kind.value if isinstance(kind, DefaultPlaceholder) else kind
    return chosen


def _context(dependant: Any, request: Request) -> Any:
    """Where the endpoint stands, for the message of an error."""
    context = routing._extract_endpoint_context(dependant.call)
    if dependant.path:
        context["path"] = f"{request.method} {request.scope.get('root_path', '').rstrip('/')}{dependant.path}"
    return context


def _is_fastapis(function: object) -> bool:
    """Whether a function is FastAPI's own; a wrapper may say that it is called the same."""
    return type(function) is FunctionType and function.__code__.co_filename.startswith(_FASTAPI)
