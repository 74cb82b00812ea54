"""What a body must be before a handler gets the end of it.

A body that is said to be JSON is JSON by RFC 8259, in UTF-8, and holds nothing that Python's reader takes but nobody
can pass on: half of a surrogate pair (RFC 7493, section 2.1), a number too large to be finite, `NaN`, nesting that
exhausts the stack of whatever writes it out again. Otherwise the handler, its answer or its database would fail.

What is grammatical JSON but cannot be worked with is a 422 that names each place, as pydantic's own findings are; half
of a pair is grammatical by RFC 8259, section 8.2. What is no JSON is a 400. NUL is a character like any other in JSON:
a database that cannot store it says so itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Never

import orjson
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.app.validation import MAX_ERRORS, described
from svc_infra.errors import BadRequestError, UnsupportedMediaTypeError, ValidationError

MAX_NESTING = 100
"""The most arrays and objects inside of one another; pydantic writes 255, and RFC 8259, section 9, allows a limit."""

Check = Callable[[bytes], None]
"""Raises an `HTTPException` where a body is not in order."""

_CHARSET = re.compile(r';\s*charset="?([^\s;"]+)"?\s*(?:;|$)', re.IGNORECASE)
_HALF_PAIR = "\ud800"


class Bodies:
    """Refuses such bodies.

    A body passes through part by part. Where it is JSON, the parts are kept until the last one has come, which is
    passed on only when the whole is in order. orjson finds that out in a quarter of the time of Python's reader.

    Args:
        app: What may read them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let the app read a checked body."""
        for name, value in scope["headers"]:
            if name == b"content-type":  # of several, frameworks read the first
                check = _check_of(value)
                if check is not None:
                    body = _Body(check, receive, send)
                    return self._app(scope, body.receive, body.send)
                break
        return self._app(scope, receive, send)


class _Body:
    """One request's body while it is read."""

    __slots__ = ("_answered", "_check", "_parts", "_receive", "_send")

    def __init__(self, check: Check, receive: Receive, send: Send) -> None:
        self._check: Check | None = check
        self._receive = receive
        self._send = send
        self._answered = False  # whoever reads then only waits for the client to go away
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        message = await self._receive()
        check = self._check
        if check is not None and not self._answered and message["type"] == "http.request":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._check = None
                try:
                    check(b"".join(self._parts))
                except HTTPException:
                    # Where the handler has not read it, the response does, to learn when the client goes away, beside
                    # the task that begins the answer: that one comes first, and then there is nothing to refuse.
                    await asyncio.sleep(0)
                    if not self._answered:
                        raise
                self._parts.clear()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        self._answered = True
        return self._send(message)


@lru_cache(maxsize=256)
def _check_of(content_type: bytes) -> Check | None:
    """What a body of this type must pass."""
    essence, _, parameters = content_type.lower().partition(b";")
    kind, _, subtype = essence.strip().partition(b"/")
    if kind == b"application" and (subtype == b"json" or subtype.endswith(b"+json")):
        return check_json
    if kind == b"multipart" and b"charset" in parameters and not _is_of_characters(content_type.decode("latin-1")):
        return _refuse_charset
    return None


def check_json(body: bytes) -> None:
    """Insist that a body is JSON that can be passed on.

    Args:
        body: All of it.

    Raises:
        HTTPException: 400, it is no JSON or nests deeper than `MAX_NESTING`; 422, values of it cannot be passed on.
            Starlette's class, because frameworks take any other error while they read for an unreadable body.
    """
    if not body:  # whether there must be one is for others to say
        return
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _read(body)  # says what is wrong, or that only orjson found it so
    if body.count(b"[") + body.count(b"{") > MAX_NESTING:
        _check_nesting(value)


def _read(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 at byte {error.start + 1}") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _malformed(f"it breaks at character {error.pos + 1}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # more digits than Python reads, whose time grows with their square
        raise _refused(BadRequestError("The body has a whole number with too many digits.")) from None
    _check_nesting(value)
    if wrong := list(islice(_wrong(value, ["body"]), MAX_ERRORS)):
        raise _refused(ValidationError(errors=list(described(wrong, document=value))))
    return value


def _wrong(value: Any, loc: list[str | int]) -> Iterator[dict[str, Any]]:
    """What cannot be passed on, in the order of the text; the places are those of pydantic's errors."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and not _is_unicode(key):
                yield _error("string_unicode", "A name in this object should be valid text", loc)
                continue
            if isinstance(part, dict | list | str | float):
                loc.append(key)
                yield from _wrong(part, loc)
                loc.pop()
    elif isinstance(value, str) and not _is_unicode(value):
        yield _error("string_unicode", "Input should be valid text, without half of a surrogate pair", loc)
    elif isinstance(value, float) and not math.isfinite(value):
        yield _error("finite_number", "Input should be a finite number", loc)


def _error(kind: str, message: str, loc: list[str | int]) -> dict[str, Any]:
    return {"type": kind, "loc": tuple(loc), "msg": message}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            part
            for container in level
            if isinstance(container, dict | list)
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _is_of_characters(content_type: str) -> bool:
    """Whether the texts of a form are in an encoding of characters, which UTF-7 and escapes are not.

    RFC 7578 knows no such parameter, but Starlette reads the texts by it.
    """
    named = _CHARSET.findall(content_type)
    if not len(named) == content_type.lower().count("charset") == 1:
        return False
    try:
        _HALF_PAIR.encode(named[0])
    except (UnicodeError, LookupError):  # as it should be; one that nobody knows is not used
        return True
    return False


def _refuse_charset(body: bytes) -> Never:
    raise _refused(UnsupportedMediaTypeError("Send the form in UTF-8, and without a `charset` in its Content-Type."))


def _refuse_constant(name: str) -> Never:
    raise _malformed(f"{name} is no number in it")


def _malformed(why: str) -> HTTPException:
    return _refused(BadRequestError(f"The body is not valid JSON: {why}."))


def _too_deep() -> HTTPException:
    return _refused(BadRequestError(f"The body nests deeper than {MAX_NESTING} levels."))


def _refused(problem: BadRequestError | UnsupportedMediaTypeError | ValidationError) -> HTTPException:
    return HTTPException(problem.status, [dict(error) for error in problem.errors] or problem.detail)
