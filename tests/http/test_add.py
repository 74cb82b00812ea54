"""An app's HTTP client."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI

from svc_infra.config import Settings
from svc_infra.errors import EgressRefusedError, UpstreamError
from svc_infra.http import HttpClient, add_http
from svc_infra.wiring import wiring_of
from tests.http.servers import OK, serving


def _app(**settings: object) -> tuple[FastAPI, HttpClient]:
    app = FastAPI()
    wiring = wiring_of(app, settings=Settings(**settings))
    add_http(app)
    return app, wiring.get(HttpClient)


def test_adding_it_twice_keeps_the_first() -> None:
    app, client = _app()
    add_http(app)
    assert wiring_of(app).get(HttpClient) is client


def test_two_apps_have_two_clients() -> None:
    assert _app()[1] is not _app()[1]


@pytest.mark.parametrize(
    ("environment", "setting", "allowed"),
    [
        ("local", None, True),
        ("test", None, True),
        ("dev", None, False),
        ("prod", None, False),
        ("local", False, False),
        ("prod", True, True),
    ],
)
async def test_private_addresses_may_be_called_in_local_and_test_or_where_the_settings_say_so(
    environment: str, setting: bool | None, allowed: bool
) -> None:
    _, client = _app(app={"env": environment}, http_client={"allow_private_addresses": setting})
    async with serving(OK) as server, client:
        if allowed:
            assert (await client.request("GET", server.url())).body == b"ok"
        else:
            with pytest.raises(EgressRefusedError):
                await client.request("GET", server.url())


async def test_the_settings_bound_the_client() -> None:
    _, client = _app(http_client={"max_response_bytes": 1, "allow_private_addresses": True})
    async with serving(OK) as server, client:
        with pytest.raises(UpstreamError, match="more than 1 bytes"):
            await client.request("GET", server.url())


async def test_its_connections_are_closed_when_the_app_stops() -> None:
    app, client = _app(app={"env": "local"})
    async with serving(OK) as server:
        async with app.router.lifespan_context(app):
            await client.request("GET", server.url())
            assert not server.hung_up.is_set()
        await asyncio.wait_for(server.hung_up.wait(), 5)
