"""The same route on bare Starlette and bare FastAPI. Imports nothing of ours, so that the memory is theirs alone."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def _starlette_item(request: Request) -> JSONResponse:
    return JSONResponse({"id": int(request.path_params["item_id"]), "name": "item"})


starlette_app = Starlette(routes=[Route("/items/{item_id}", _starlette_item)])
fastapi_app = FastAPI()


@fastapi_app.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, object]:
    """One item."""
    return {"id": item_id, "name": "item"}
