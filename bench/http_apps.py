"""Our apps: the defaults, more than the defaults, and one to restart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from svc_infra import create_app, easy_service_app
from svc_infra.config import Settings
from svc_infra.middleware import RateLimitMiddleware


async def item(item_id: int) -> dict[str, object]:
    """One item."""
    return {"id": item_id, "name": "item"}


def made(**sections: dict[str, Any]) -> FastAPI:
    """An app with every default on, but for these sections of its settings."""
    app = easy_service_app(name="bench", release="1.0.0", settings=Settings(**sections) if sections else None)
    app.get("/items/{item_id}")(item)
    return app


def guarded() -> FastAPI:
    """With what `bench.http_peer_app` has beyond our defaults: pages of another origin, and a rate limit."""
    app = made(cors={"origins": ["https://app.example.com"]})
    app.add_middleware(RateLimitMiddleware, rate="1000000/second")
    return app


svc_infra_app = made()


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
