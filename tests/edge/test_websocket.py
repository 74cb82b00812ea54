from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from svc_infra.errors import ForbiddenError
from svc_infra.obs.context import current
from svc_infra.wiring import current_wiring, wiring_of
from tests.middleware.asgi import edged, scope_of
from tests.obs.log_capture import captured

DENIAL = {"websocket.http.response": {}}


async def connect(
    endpoint: Any, *received: Message, headers: Any = (), extensions: dict[str, Any] | None = None, **app_settings: Any
) -> list[Message]:
    """Open a websocket, let it receive these messages, and return what the app sent."""
    app = edged(Starlette(routes=[WebSocketRoute("/rooms/{room}", endpoint)]), **app_settings)
    incoming: list[Message] = [{"type": "websocket.connect"}, *received]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "websocket.disconnect", "code": 1001}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {**scope_of(path="/rooms/7", headers=headers), "type": "websocket", "extensions": extensions or {}}
    del scope["method"]
    await app(scope, receive, send)
    assert wiring_of(app).in_flight == 0
    return sent


async def test_a_websocket_has_a_request_id_a_context_and_one_access_line() -> None:
    async def chat(websocket: WebSocket) -> None:
        wiring = current_wiring()
        assert wiring is not None
        assert wiring.in_flight == 1
        await websocket.accept()
        await websocket.send_text(current().request_id)
        await websocket.close()

    with captured() as output:
        accepted, text, closed = await connect(chat, headers=[("X-Request-Id", "mine")])
    assert dict(accepted["headers"])[b"x-request-id"] == b"mine"
    assert (text["text"], closed["type"]) == ("mine", "websocket.close")
    (line,) = output.lines
    assert (line["method"], line["route"], line["status"], line["bytes"]) == ("WEBSOCKET", "/rooms/{room}", 101, 4)


async def test_an_error_before_the_handshake_is_a_problem_where_the_server_can() -> None:
    async def refuse(websocket: WebSocket) -> None:
        raise ForbiddenError

    start, body = await connect(refuse, extensions=DENIAL)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"]
    assert b'"code":"forbidden"' in body["body"]
    (closed,) = await connect(refuse)
    assert (closed["type"], closed["code"], closed["reason"]) == ("websocket.close", 1008, "forbidden")


@pytest.mark.parametrize(
    ("error", "code", "reason"), [(ForbiddenError(), 1008, "forbidden"), (KeyError(), 1011, "internal_error")]
)
async def test_an_error_in_an_open_websocket_closes_it_and_tells_the_code(
    error: Exception, code: int, reason: str
) -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    with captured() as output:
        _, closed = await connect(fail, extensions=DENIAL, env="prod")
    assert (closed["type"], closed["code"], closed["reason"]) == ("websocket.close", code, reason)
    failed = [line for line in output.lines if line["message"] == "websocket.failed"]
    assert bool(failed) is (code == 1011)


async def test_a_client_that_leaves_is_no_failure_and_is_told_nothing() -> None:
    async def listen(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.receive_text()

    with captured() as output:
        sent = await connect(listen)
    assert [message["type"] for message in sent] == ["websocket.accept"]
    (line,) = output.lines
    assert (line["method"], line["status"]) == ("WEBSOCKET", 101)


async def test_an_error_after_the_close_is_only_logged() -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()
        raise KeyError("late")

    with captured() as output:
        sent = await connect(fail)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert output.only("websocket.failed")["error"]["type"] == "KeyError"
