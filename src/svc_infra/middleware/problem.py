"""Problems: every error as one kind of answer (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib import import_module
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope, Send

from svc_infra.config import Environment
from svc_infra.errors import BadRequestError, ConfigurationError, DeadlineExceededError, SvcInfraError, error_types
from svc_infra.middleware._scope import EDGE, AtEdge
from svc_infra.obs.context import current
from svc_infra.obs.redact import printable, shown, to_json
from svc_infra.wiring import current_wiring

Headers = list[tuple[bytes, bytes]]

MAX_INSTANCE_CHARS = 2048

_TRANSLATED_BY = {
    "sqlalchemy": "svc_infra.db.errors",
    "redis": "svc_infra.redis",
    **dict.fromkeys(("httpcore", "httpcore2", "httpx", "httpx2"), "svc_infra.http.errors"),
}
_OF_STATUS = {
    kind.status: kind for kind in reversed(list(error_types())) if kind.__module__ == SvcInfraError.__module__
}
_RENAMED = {416: "Range Not Satisfiable"}
"""Phrases of RFC 9110 that Python calls so from 3.13 on; where a status has a class, that has its title."""
_PATH = "/:@!$&'()*+,;=~"
_NOT_IN_A_HEADER = re.compile(r"[\x00-\x1f\x7f]+")


def problem_type(code: str) -> str:
    """The path of the page, below the one that the app is served under, which is a problem's type."""
    return f"/problems/{code}"


def as_problem(error: BaseException) -> SvcInfraError:
    """The library's error for any error: itself, what a driver or Starlette raised, or an internal error.

    Args:
        error: What was raised. A group of one exception counts as that exception.

    Returns:
        An error with a status and a code; the detail of an internal error names what was raised.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, SvcInfraError):
        return error
    if isinstance(error, HTTPException):
        return _from_starlette(error)
    if isinstance(error, ClientDisconnect):
        return BadRequestError("The connection was closed before the request was complete.")
    for kind in type(error).__mro__:
        if translator := _TRANSLATED_BY.get(kind.__module__.partition(".")[0]):
            translated: SvcInfraError = import_module(translator).translated(error)
            return translated
    if isinstance(error, TimeoutError):
        return DeadlineExceededError()
    return SvcInfraError(shown(f"{type(error).__name__}: {printable(error)}"))


def render(
    error: SvcInfraError,
    *,
    scope: Scope,
    expose: bool,
    cause: BaseException | None,
    members: Mapping[str, Any] | None = None,
) -> tuple[int, Headers, bytes]:
    """An error as an answer.

    Args:
        error: The error, as `as_problem` gives it.
        scope: The request's; the answer names its path, never its query.
        expose: Show the details of errors from 500 on; elsewhere than in production.
        cause: What was raised; in local its stack is shown where it was no error of the library.
        members: Further members of the body; they are shown to everybody.

    Returns:
        The status, the headers without `Content-Length`, and the body.
    """
    code, title, detail, errors = error.code, error.title, error.detail, error.errors
    hidden = error.status >= 500 and not expose
    if hidden:
        kind = SvcInfraError if isinstance(error, ConfigurationError) else type(error)
        code, title, errors = (kind.code, kind.title, ()) if kind is SvcInfraError else (code, title, ())
        detail = (kind.__doc__ or title).strip().splitlines()[0]
    context = current()
    problem: dict[str, Any] = {
        "type": _root_path(scope) + problem_type(code),
        "title": title,
        "status": error.status,
        "detail": detail,
        "instance": quote(scope["path"][:MAX_INSTANCE_CHARS], safe=_PATH, errors="replace"),
        "code": code,
    }
    if errors:
        problem["errors"] = [dict(entry) for entry in errors]
    problem["request_id"], problem["trace_id"] = context.request_id, context.trace_id
    if error.status >= 500 and expose and _is_local() and not isinstance(cause, SvcInfraError | None):
        problem["stack"] = shown("".join(traceback.format_exception(cause)), keep_end=True).splitlines()
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store", **error.headers}
    return error.status, encoded(headers.items()), to_json({**problem, **error.members, **(members or {})})


async def respond(
    scope: Scope, send: Send, error: BaseException, *, expose: bool, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer a request, or the handshake of a websocket, with an error.

    Args:
        scope: The request's scope.
        send: Where the answer goes.
        error: What was raised.
        expose: As for `render`.
        headers: Further ones.
    """
    if isinstance(error, HTTPException) and error.status_code < 400:  # a redirect, for example, is no problem
        status, fields, body = error.status_code, encoded((error.headers or {}).items()), b""
    else:
        status, fields, body = render(as_problem(error), scope=scope, expose=expose, cause=error)
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    fields += [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": status, "headers": fields})
    await send({"type": f"{kind}.body", "body": body})


def encoded(headers: Iterable[tuple[str, str]]) -> Headers:
    """Headers as ASGI wants them; control characters, which could begin another header, become spaces."""
    return [
        (name.lower().encode("latin-1"), _NOT_IN_A_HEADER.sub(" ", value).encode("latin-1", "replace"))
        for name, value in headers
    ]


def _from_starlette(error: HTTPException) -> SvcInfraError:
    status = error.status_code
    pythons = next((known.phrase for known in HTTPStatus if known == status), f"Status {status}")
    detail = error.detail if isinstance(error.detail, str) and error.detail != pythons else None
    phrase = _RENAMED.get(status, pythons)
    if status in _OF_STATUS:
        problem = _OF_STATUS[status](detail)
    else:
        problem = SvcInfraError(detail or f"{phrase}.")
        code = re.sub(r"[^a-z0-9]+", "_", phrase.lower())
        vars(problem).update(status=status, title=phrase, code=code)  # of this one error, not of its class
    if isinstance(error.detail, dict | list):
        entries = error.detail if isinstance(error.detail, list) else [error.detail]
        problem.errors = tuple(entry if isinstance(entry, dict) else {"detail": entry} for entry in entries)
    given = dict(error.headers or {})
    ours = {name: value for name, value in problem.headers.items() if name.lower() not in map(str.lower, given)}
    problem.headers = {**ours, **given}
    return problem


def _root_path(scope: Scope) -> str:
    """Where the app that has the pages is served; a mounted one has none of its own."""
    edge: AtEdge | None = scope.get(EDGE)
    root_path = scope.get("root_path", "") if edge is None else edge.root_path
    return quote(root_path.rstrip("/"), safe=_PATH, errors="replace")


def _is_local() -> bool:
    wiring = current_wiring()
    return wiring is not None and wiring.settings.environment is Environment.LOCAL
