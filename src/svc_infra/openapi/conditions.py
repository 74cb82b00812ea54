"""How conditional requests read in the OpenAPI document: `If-Match` and its relatives, `ETag` and `Last-Modified`."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from svc_infra.openapi.schema import Address

_READS = ("get", "head")
_TAGS = 'Entity tags with commas between them, such as `"abc"`, or `*`, which stands for whatever there is.'
_DATE = "A date as in `Sun, 06 Nov 1994 08:49:37 GMT`; one of another form counts as not sent."
_OF_READS = {
    "If-Match": f"Answer only what has one of these tags (412). {_TAGS}",
    "If-None-Match": f"Answer only what has none of these tags (304). {_TAGS}",
    "If-Modified-Since": f"Answer only what has changed since (304), where there is no If-None-Match. {_DATE}",
    "If-Unmodified-Since": f"Answer only what has not changed since (412), where there is no If-Match. {_DATE}",
}
_OF_WRITES = {
    "If-Match": f"Change only what has one of these tags (412). {_TAGS}",
    "If-None-Match": f"Change only what has none of these tags (412); with `*`, only make what is not there. {_TAGS}",
    "If-Unmodified-Since": f"Change only what has not changed since (412), where there is no If-Match. {_DATE}",
}
_VALIDATORS: dict[str, Any] = {
    "ETag": {"description": "The tag of what is answered.", "schema": {"type": "string"}},
    "Last-Modified": {"description": "When it was changed last.", "schema": {"type": "string"}},
}


def document_conditions(schema: dict[str, Any], operations: Iterable[Address]) -> None:
    """Name in an OpenAPI document the headers of conditional requests, and the validators of what they read.

    Done in place. What an operation declares itself, under any spelling of the name, is kept.

    Args:
        schema: The document, with the statuses of each operation.
        operations: Those that depend on `Conditional`.
    """
    for path, method in operations:
        operation = schema["paths"].get(path, {}).get(method)
        if operation is None:  # not part of the document
            continue
        parameters = operation.setdefault("parameters", [])
        declared = {one["name"].lower() for one in parameters if one.get("in") == "header"}
        for name, description in (_OF_READS if method in _READS else _OF_WRITES).items():
            if name.lower() not in declared:
                parameters.append(_header(name, description))
        answer = operation["responses"].get("200")
        if method in _READS and answer is not None and "$ref" not in answer:
            answer["headers"] = {**deepcopy(_VALIDATORS), **answer.get("headers", {})}
    if unchanged := schema.get("components", {}).get("responses", {}).get("NotModified"):
        unchanged["headers"] = {**deepcopy(_VALIDATORS), **unchanged["headers"]}


def _header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "title": name}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
