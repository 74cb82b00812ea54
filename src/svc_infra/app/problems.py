"""Problems (RFC 9457) as the answer to every error that a route or a dependency raises.

Known errors are answered here, inside of a user's middleware, which so can still add its headers. An error that nobody
expected passes through the middleware, as Starlette's do, and is answered by the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Never

from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError, ResponseValidationError, WebSocketRequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from svc_infra.app.validation import MAX_ERRORS, described
from svc_infra.config import Environment
from svc_infra.errors import (
    BadRequestError,
    MethodNotAllowedError,
    SvcInfraError,
    UnsupportedMediaTypeError,
    ValidationError,
)
from svc_infra.middleware.problem import as_problem, render
from svc_infra.wiring import wiring_of

_FASTAPI_HANDLERS = (
    None,
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)


def add_problems(app: Starlette) -> None:
    """Answer the errors of an app's routes with problems; a handler that the app has set itself is kept."""
    handlers: dict[type[Exception], Any] = {
        SvcInfraError: _answer,
        HTTPException: _answer,
        RequestValidationError: _answer,
        WebSocketRequestValidationError: _answer,
        ResponseValidationError: _tell_invalid_response,
        Exception: leave_to_the_edge,
    }
    if 500 in app.exception_handlers:  # says the same as Exception
        del handlers[Exception]
    for kind, handler in handlers.items():
        if app.exception_handlers.get(kind) in _FASTAPI_HANDLERS:
            app.exception_handlers[kind] = handler


async def _answer(connection: HTTPConnection, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    problem = _problem(error)
    if connection.scope["type"] == "websocket":
        raise problem from None  # the edge knows how far the handshake is
    expose = wiring_of(connection.app).settings.environment is not Environment.PROD
    if isinstance(problem, MethodNotAllowedError):
        problem.headers.update(_allowed(connection))
    status, headers, body = render(problem, scope=connection.scope, expose=expose, cause=error)
    response = Response(body, status_code=status)
    response.raw_headers += headers
    return response


def _allowed(connection: HTTPConnection) -> dict[str, str]:
    """The methods of all routes of an address (RFC 9110, section 15.5.6); the router names those of one."""
    scope = connection.scope
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    routes = [route for route in iter_route_contexts(connection.app.routes) if route.methods]
    routes = [route for route in routes if route.path_regex.match(path)]
    methods = {method for route in routes for method in route.methods or ()}
    if scope["method"] in methods or scope.get("route") not in [route.original_route for route in routes]:
        return {}  # the handler itself has refused, or a route that this app does not have but another router
    return {"Allow": ", ".join(sorted(methods))}


def _problem(error: Exception) -> SvcInfraError:
    if isinstance(error, RequestValidationError):
        return _unacceptable(error)
    if isinstance(error, WebSocketRequestValidationError):
        return ValidationError(errors=list(described(error.errors(), document=None)))
    return as_problem(error)


def _unacceptable(error: RequestValidationError) -> SvcInfraError:
    errors = error.errors()
    match errors[0]:
        case {"type": "json_invalid", "loc": ("body", int(position))} if isinstance(error.body, str):
            return BadRequestError(f"The body is not valid JSON: it breaks at character {position + 1}.")
    if isinstance(error.body, bytes) and any(_wants_json(wrong) for wrong in errors):
        return UnsupportedMediaTypeError()
    document = error.body if isinstance(error.body, dict | list) else None
    listed = f", of which the first {MAX_ERRORS} are listed" if len(errors) > MAX_ERRORS else ""
    values = "1 value of the request is" if len(errors) == 1 else f"{len(errors)} values of the request are"
    return ValidationError(f"{values} not acceptable{listed}.", errors=list(described(errors, document=document)))


def _wants_json(error: Mapping[str, Any]) -> bool:
    """Whether a body that was not read as JSON is refused for having no members."""
    kind = str(error["type"])
    return error["loc"][0] == "body" and (kind == "missing" or kind.endswith("_type"))


async def _tell_invalid_response(_: HTTPConnection, error: ResponseValidationError) -> Never:
    """Say where the response is wrong, and nothing else of it: the error holds all of it, which logs may not show."""
    places = "; ".join(
        f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['detail']}"
        for wrong in described(error.errors(), document=None)
    )
    raise SvcInfraError(f"{error.endpoint_path} answered what its response model does not allow: {places}") from None


async def leave_to_the_edge(_: HTTPConnection, error: Exception) -> Never:
    raise error
