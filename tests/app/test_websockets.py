"""Errors of websockets: a problem while the handshake can be refused, a closing code afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.errors import NotFoundError
from svc_infra.middleware import RateLimitMiddleware
from tests.app.answers import SECRET, is_problem
from tests.app.conftest import Factory
from tests.app.serving import served


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


# -------------------------------------------------------------------------------------------------- over real sockets


@pytest.fixture
def chat() -> Iterator[httpx2.Client]:
    app: FastAPI = create_app(settings=Settings(app={"env": "prod"}, edge={"max_url_bytes": 200}))
    app.add_middleware(RateLimitMiddleware, "3/hour")

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="echo")
        async for text in websocket.iter_text():
            await websocket.send_text(text * 2)

    @app.websocket("/late")
    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ValueError(SECRET)

    @app.websocket("/never")
    async def never(websocket: WebSocket) -> None:
        await websocket.close(reason="Members only.")

    with served(app) as (_, client):
        yield client


def opened(chat: httpx2.Client, path: str) -> ClientConnection:
    url = str(chat.base_url.join(path)).replace("http", "ws", 1)
    return connect(url, subprotocols=["echo"], additional_headers={"X-Request-Id": "mine"}, proxy=None)  # type: ignore[list-item]


def test_a_client_and_the_app_talk_through_every_layer(chat: httpx2.Client) -> None:
    with opened(chat, "/echo") as socket:
        assert socket.response is not None
        assert (socket.subprotocol, socket.response.headers["X-Request-Id"]) == ("echo", "mine")
        assert socket.response.headers["X-RateLimit-Remaining"] == "2"
        for text in ("a", "é" * 50_000):
            socket.send(text)
            assert socket.recv(timeout=10) == text * 2
        assert chat.get("/nothing").status_code == 404  # others go on meanwhile
    with pytest.raises(ConnectionClosedOK):
        socket.recv(timeout=10)


def test_an_error_of_an_open_one_closes_it_with_a_code_and_no_secret(chat: httpx2.Client) -> None:
    with opened(chat, "/late") as socket, pytest.raises(ConnectionClosedError) as closed:
        socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert SECRET not in closed.value.rcvd.reason


def test_a_handshake_is_refused_with_a_problem(chat: httpx2.Client) -> None:
    found = []
    for path in ("/none", "/echo?" + "q" * 300, "/never", "/echo", "/echo"):
        try:
            with opened(chat, path):
                found.append((101, None))
        except InvalidStatus as refused:
            found.append((refused.response.status_code, json.loads(refused.response.body or b"{}").get("code")))
    assert found == [(404, "not_found"), (414, "uri_too_long"), (403, "forbidden"), (101, None), (429, "rate_limited")]
