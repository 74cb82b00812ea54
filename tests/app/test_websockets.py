"""Errors of websockets: a problem while the handshake can be refused, a closing code afterwards."""

from __future__ import annotations

import pytest
from fastapi import HTTPException, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from svc_infra.errors import NotFoundError
from tests.app.answers import SECRET, is_problem
from tests.app.conftest import Factory


@pytest.fixture
def sockets(make: Factory) -> TestClient:
    app = make("prod")

    @app.websocket("/refuse/{kind}")
    async def refuse(websocket: WebSocket, kind: str) -> None:
        raise {"known": NotFoundError("Room", "7"), "http": HTTPException(403), "unknown": ValueError(SECRET)}[kind]

    @app.websocket("/late/{kind}")
    async def late(websocket: WebSocket, kind: str) -> None:
        await websocket.accept()
        raise {"known": NotFoundError("Room", "7"), "unknown": ValueError(SECRET)}[kind]

    @app.websocket("/number/{number}")
    async def number(websocket: WebSocket, number: int) -> None:
        await websocket.accept()
        await websocket.send_json(number)

    return TestClient(app)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/refuse/known", 404, "not_found"),
        ("/refuse/http", 403, "forbidden"),
        ("/refuse/unknown", 500, "internal_error"),
        (f"/number/{SECRET}", 422, "validation_error"),
    ],
)
def test_a_websocket_that_is_refused_gets_a_problem(path: str, status: int, code: str, sockets: TestClient) -> None:
    with pytest.raises(WebSocketDenialResponse) as refused, sockets.websocket_connect(path):
        pytest.fail("accepted")
    problem = is_problem(refused.value, status, code, path)
    assert SECRET not in refused.value.text.replace(path, "")
    assert ("errors" in problem) is (status == 422)


@pytest.mark.parametrize(
    ("kind", "code", "reason"), [("known", 1008, "not_found"), ("unknown", 1011, "internal_error")]
)
def test_an_open_websocket_is_closed_with_the_code_of_the_problem(
    kind: str, code: int, reason: str, sockets: TestClient
) -> None:
    with sockets.websocket_connect(f"/late/{kind}") as websocket, pytest.raises(WebSocketDisconnect) as closed:
        websocket.receive_text()
    assert (closed.value.code, closed.value.reason) == (code, reason)


def test_a_websocket_with_good_values_is_served(sockets: TestClient) -> None:
    with sockets.websocket_connect("/number/7") as websocket:
        assert websocket.receive_json() == 7
