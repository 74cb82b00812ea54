"""Says which values of a request are not acceptable, without repeating any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args
from urllib.parse import quote

from pydantic_core.core_schema import ErrorType

MAX_ERRORS = 100
MAX_LOC_PARTS = 32
MAX_KEY_CHARACTERS = 100
MAX_DETAIL_CHARACTERS = 300
MAX_COMPARED_CHARACTERS = 8_000
SHARED_RUN_CHARACTERS = 8

_QUOTING = {
    "assertion_error",
    "datetime_object_invalid",
    "get_attribute_error",
    "iteration_error",
    "mapping_type",
    "union_tag_invalid",
    "value_error",
}
_SAFE = frozenset(get_args(ErrorType)) - _QUOTING
"""Types whose messages pydantic writes from the rule alone; every other message may quote the value."""


def described(errors: Sequence[Mapping[str, Any]], *, document: object | None) -> Iterator[dict[str, Any]]:
    """What is wrong with each value, and where it is; at most `MAX_ERRORS`.

    Args:
        errors: As pydantic reports them.
        document: The JSON body that they are about, when there is one; pointers lead into it.
    """
    for error in errors[:MAX_ERRORS]:
        loc = error["loc"][:MAX_LOC_PARTS]
        described = {"loc": [_cut(part) for part in loc], "detail": _detail(error), "type": _cut(error["type"])}
        if document is not None and loc[:1] == ("body",):
            described["pointer"] = _pointer(loc[1:], document, missing=error["type"] == "missing")
        yield described


def _detail(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] not in _SAFE and _quotes(message, error.get("input")):
        return "The value is not acceptable."
    return message[:MAX_DETAIL_CHARACTERS]


def _quotes(message: str, value: object) -> bool:
    """Whether a message may repeat a value or a part of it; so when the value is too large to tell."""
    message = message.casefold()
    runs = {message[at : at + SHARED_RUN_CHARACTERS] for at in range(len(message) - SHARED_RUN_CHARACTERS + 1)}
    compared = 0
    for text in _texts(value):
        compared += len(text) + 1
        if compared > MAX_COMPARED_CHARACTERS:
            return True
        if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message) or any(run in text for run in runs):
            return True
    return False


def _texts(value: object) -> Iterator[str]:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            pending.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            pending.extend(part)
        elif part is not None and not isinstance(part, bool):
            text = part.decode(errors="replace") if isinstance(part, bytes) else str(part)
            if text := text.casefold().strip():
                yield text


def _pointer(parts: Sequence[str | int], document: Any, *, missing: bool) -> str:
    """The JSON Pointer (RFC 6901) of a value as a URI fragment.

    pydantic also names the members of unions on the way, which are nowhere in the document; they are left out. A
    missing key is not in the document either, and is always the last.
    """
    tokens: list[str] = []
    for index, part in enumerate(parts):
        if _leads(part, document):
            document = document[part]
        elif not (missing and index == len(parts) - 1):
            continue
        tokens.append(quote(str(_cut(part)).replace("~", "~0").replace("/", "~1"), safe="~"))
    return "#" + "".join(f"/{token}" for token in tokens)


def _leads(part: str | int, document: object) -> bool:
    if isinstance(document, list):
        return isinstance(part, int) and 0 <= part < len(document)
    return isinstance(document, dict) and part in document


def _cut(part: str | int) -> str | int:
    return part[:MAX_KEY_CHARACTERS] if isinstance(part, str) else part
