"""Gives an app its HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svc_infra.http.client import HttpClient
from svc_infra.wiring import Part, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_http(app: FastAPI) -> None:
    """Share an `HttpClient` made from the `HTTP_CLIENT_*` settings, closed when the app stops.

    Unless the settings say otherwise, private addresses may be called in local and test only.
    """
    wiring = wiring_of(app)
    if wiring.has(HttpClient):
        return
    settings = wiring.settings.http_client
    allowed = settings.allow_private_addresses
    client = HttpClient(
        timeout_seconds=settings.timeout_seconds,
        max_response_bytes=settings.max_response_bytes,
        allow_private_addresses=wiring.settings.environment.is_trusted if allowed is None else allowed,
    )
    wiring.provide(HttpClient, client)
    wiring.add(Part("http", run=lambda: client))
