"""How errors read in the OpenAPI document: one `Problem` schema, the body of every 4xx and 5xx."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import orjson

PROBLEM_MEDIA_TYPE = "application/problem+json"

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "code"],
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
        "stack": {"type": "array", "items": {"type": "string"}, "description": "In local only: where it was raised."},
    },
}

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_REPLACED = ("HTTPValidationError", "ValidationError")  # FastAPI's own; the first refers to the second


def document_problems(schema: dict[str, Any]) -> None:
    """Make `Problem` a component of an OpenAPI document and the body of every 4xx and 5xx in it; done in place.

    A body that the application declared for an error itself is kept.
    """
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    name = "Problem" if "Problem" not in schemas else "ProblemDetails"
    schemas[name] = deepcopy(PROBLEM)
    for path in schema.get("paths", {}).values():
        for method in _METHODS:
            if method in path:
                _document(path[method].setdefault("responses", {}), f"#/components/schemas/{name}")
    for replaced in _REPLACED:
        if f'"#/components/schemas/{replaced}"'.encode() not in orjson.dumps(schema):
            schemas.pop(replaced, None)


def _document(responses: dict[str, Any], reference: str) -> None:
    responses.setdefault("4XX", {"description": "The request cannot be served as it is."})
    responses.setdefault("5XX", {"description": "The service failed."})
    for status, response in responses.items():
        if status[0] in "45" and "$ref" not in response and not _is_the_applications(response.get("content")):
            response["content"] = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": reference}}}


def _is_the_applications(content: dict[str, Any] | None) -> bool:
    if not content:
        return False
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    return not reference.endswith("/HTTPValidationError")
