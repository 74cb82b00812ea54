"""Adds the OpenAPI document, the API reference and the problem pages to an app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from svc_infra.openapi.http import document, operations, serve_pages
from svc_infra.openapi.operations import refuse_duplicates
from svc_infra.wiring import Part, wiring_of

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "openapi"


def add_openapi(app: FastAPI) -> None:
    """Document an app: stable operation ids, problems as error bodies, `/docs`, `/redoc`, `/problems` and `/`.

    The addresses of the document and its two viewers are the app's own (`openapi_url`, `docs_url`, `redoc_url`); None
    leaves one out. At start-up two operations of the same name or address raise `ConfigurationError`.

    Args:
        app: The app. Routes that it already has keep the operation ids that FastAPI gave them.
    """
    wiring = wiring_of(app)
    if NAME in wiring.parts:
        return

    @asynccontextmanager
    async def checked() -> AsyncIterator[None]:
        refuse_duplicates(list(operations(app)))
        yield

    document(app)
    serve_pages(app)
    wiring.add(Part(NAME, run=checked))
