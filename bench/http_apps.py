"""The same route three times: bare Starlette, bare FastAPI, and a svc-infra app with every default on."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from svc_infra import easy_service_app


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
