"""How errors read in the OpenAPI document: one `Problem` schema, and one shared response for each status."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException

from svc_infra.middleware.problem import as_problem

PROBLEM_MEDIA_TYPE = "application/problem+json"

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id", "trace_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "The page that explains this problem."},
        "title": {"type": "string", "description": "The kind of problem; the same for every occurrence."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What went wrong this time."},
        "instance": {"type": "string", "format": "uri-reference", "description": "The path that was asked for."},
        "code": {"type": "string", "description": "The kind of problem, for programs."},
        "errors": {
            "type": "array",
            "description": "Each value that is not acceptable.",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "type": {"type": "string", "description": "The rule that was broken, for programs."},
                    "loc": {
                        "type": "array",
                        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                        "description": "Where the value is: body, query, path, header or cookie first.",
                    },
                    "pointer": {"type": "string", "description": "JSON Pointer into the body (RFC 6901)."},
                },
            },
        },
        "request_id": {"type": "string", "description": "Quote it when you report the problem."},
        "trace_id": {"type": "string", "description": "The trace that the request belongs to (W3C Trace Context)."},
        "violated-policies": {
            "type": "array",
            "items": {"type": "string"},
            "description": "With rate_limited: the policies that refused, by their names in RateLimit-Policy.",
        },
        "stack": {"type": "array", "items": {"type": "string"}, "description": "In local only: where it was raised."},
    },
}

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_SAFE = ("get", "options", "head", "trace")
_REPLACED = ("HTTPValidationError", "ValidationError")  # FastAPI's own; the first refers to the second

_EVERYWHERE = (400, 413, 414, 431, 500, 503, 504)
"""What the edge answers for every route: before its handler runs, or when that fails."""
_REQUEST_ID = {"description": "Of this request.", "required": True, "schema": {"type": "string"}}
_RETRY_AFTER = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "The scheme.", "required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
}

Address = tuple[str, str]
"""A path as the document shows it, and a method in small letters."""


def document_problems(schema: dict[str, Any], further: Mapping[Address, Collection[int]]) -> None:
    """Name in an OpenAPI document the statuses from 400 on that each operation answers with; done in place.

    Each is a shared response whose body is the component `Problem`. Which ones the library itself can answer with
    follows from the operation; what the application's code adds is its own to declare, and covered by `4XX` and `5XX`.
    A body that the application declared for an error itself is kept.

    Args:
        schema: The document.
        further: More statuses of some operations; 304 may be among them.
    """
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    name = "Problem" if "Problem" not in schemas else "ProblemDetails"
    schemas[name] = deepcopy(PROBLEM)
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    shared = components.setdefault("responses", {})
    for path, methods in schema.get("paths", {}).items():
        for method in filter(methods.__contains__, _METHODS):
            operation = methods[method]
            responses = operation.setdefault("responses", {})
            statuses = {*_statuses(path, method, operation), *further.get((path, method), ())}
            for status in sorted(statuses):
                if _is_fastapis(responses.get(str(status))):
                    responses[str(status)] = _share(shared, status, content)
            responses.setdefault("4XX", {"description": "The request cannot be served as it is."})
            responses.setdefault("5XX", {"description": "The service failed."})
            for status, response in responses.items():
                if status[0] in "45" and "$ref" not in response and not response.get("content"):
                    response["content"] = deepcopy(content)
    for replaced in _REPLACED:
        if f'"#/components/schemas/{replaced}"'.encode() not in orjson.dumps(schema):
            schemas.pop(replaced, None)


def _statuses(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[int]:
    yield from _EVERYWHERE
    if operation.get("security"):
        yield from (401, 403)
    if "{" in path:
        yield 404
    if method not in _SAFE:
        yield 409
    if "requestBody" in operation:
        yield from (408, 415, 422)
    if operation.get("parameters"):
        yield 422


def _share(shared: dict[str, Any], status: int, content: dict[str, Any]) -> dict[str, str]:
    """A reference to the response of this status, which is made where there is none yet."""
    if status == HTTPStatus.NOT_MODIFIED:
        shared["NotModified"] = {"description": "The client has it already.", "headers": {"X-Request-Id": _REQUEST_ID}}
        return {"$ref": "#/components/responses/NotModified"}
    problem = as_problem(HTTPException(status))
    name = problem.title.replace(" ", "")
    headers = {"X-Request-Id": _REQUEST_ID, **_HEADERS.get(status, {})}
    shared.setdefault(name, {"description": problem.detail, "headers": deepcopy(headers), "content": deepcopy(content)})
    return {"$ref": f"#/components/responses/{name}"}


def _is_fastapis(response: Mapping[str, Any] | None) -> bool:
    """Whether nobody has declared this response but FastAPI."""
    if response is None:
        return True
    reference = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return str(reference).endswith("/HTTPValidationError")
