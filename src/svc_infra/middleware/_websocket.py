"""The end of a websocket that is refused or has failed."""

from __future__ import annotations

from starlette.status import WS_1008_POLICY_VIOLATION, WS_1011_INTERNAL_ERROR
from starlette.types import Scope, Send

from svc_infra.middleware.problem import as_problem, respond


async def refuse(scope: Scope, send: Send, error: Exception, *, expose: bool, is_open: bool) -> None:
    """End a websocket with an error: by an answer to the handshake where the server can, else by closing it."""
    if not is_open and "websocket.http.response" in scope.get("extensions", {}):
        await respond(scope, send, error, expose=expose)
        return
    problem = as_problem(error)
    code = WS_1011_INTERNAL_ERROR if problem.status >= 500 else WS_1008_POLICY_VIOLATION
    await send({"type": "websocket.close", "code": code, "reason": problem.code})
