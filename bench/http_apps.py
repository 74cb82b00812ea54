"""One route on bare Starlette, bare FastAPI and a svc-infra app with every default on; and an app to restart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from svc_infra import create_app, easy_service_app


async def _starlette_item(request: Request) -> JSONResponse:
    return JSONResponse({"id": int(request.path_params["item_id"]), "name": "item"})


starlette_app = Starlette(routes=[Route("/items/{item_id}", _starlette_item)])
fastapi_app = FastAPI()
svc_infra_app = easy_service_app(name="bench", release="1.0.0")


@fastapi_app.get("/items/{item_id}")
@svc_infra_app.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, object]:
    """One item."""
    return {"id": item_id, "name": "item"}


class _Room:
    """Something that a handler needs, and that is closed when the app stops."""

    is_open = False


@asynccontextmanager
async def _open_room(app: FastAPI) -> AsyncIterator[None]:
    _Room.is_open = True
    yield
    _Room.is_open = False


rolling_app = create_app(name="rolling", lifespan=_open_room)


@rolling_app.get("/")
async def worker() -> PlainTextResponse:
    """The process that answers, after a moment in which the service may be told to stop."""
    await asyncio.sleep(0.005)
    return PlainTextResponse(str(os.getpid()), status_code=200 if _Room.is_open else 500)
