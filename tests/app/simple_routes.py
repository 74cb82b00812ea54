"""The same routes on FastAPI's own route class and on ours, in each place where routes can stand."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute, Mount
from pydantic import AfterValidator, BaseModel

from svc_infra.app.simple_route import SimpleRoute

SIMPLE = 15
"""How many of the routes that `declare` declares are simple."""


class Item(BaseModel):
    id: int
    name: str = "item"
    secret: str | None = None


class Loud(JSONResponse):
    """A response class as a user may write it."""

    def __init__(self, content: Any, background: Any, status_code: int = 202) -> None:
        super().__init__({"loud": content}, status_code, {"X-Loud": "1"}, background=background)


class WantsTeaError(Exception):
    pass


def even(number: int) -> int:
    if number % 2:
        raise ValueError("odd")
    return number


async def scaled(item_id: int, by: int) -> int:
    return item_id * by


def decorated(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def around(*args: Any, **kwargs: Any) -> Any:
        return {"around": await function(*args, **kwargs)}

    return around


def declare_simple(on: FastAPI | APIRouter) -> None:
    @on.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, object]:
        return {"id": item_id}

    @on.get("/models/{item_id}", response_model=Item, response_model_exclude_none=True, status_code=203)
    async def model(item_id: Annotated[int, Path(gt=0)], name: str = "x") -> Any:
        return {"id": item_id, "name": name, "extra": 1} if item_id != 7 else {"id": "no number"}

    @on.get("/search")
    async def search(
        text: Annotated[str, Query(min_length=2, alias="q")],
        kind: Literal["a", "b"] = "a",
        tags: Annotated[list[str], Query()] = [],  # noqa: B006 - as FastAPI's own documentation writes it
        ratio: float | None = None,
    ) -> Any:
        tags.append("changed")
        return {"text": text, "kind": kind, "tags": tags, "ratio": ratio}

    @on.get("/filter")
    async def filtered(model: Annotated[Item, Query()]) -> Item:
        return model

    @on.get("/untyped/{what}")
    async def untyped(what: str):  # type: ignore[no-untyped-def]
        return [what, {1, 2}, Item(id=3), float("inf") if what == "0" else 1.5]

    @on.post("/even/{number}")
    async def evens(number: Annotated[int, AfterValidator(even)]) -> int:
        return number

    declare_kinds_of_answers(on)
    on.get("/decorated/{item_id}")(decorated(item))
    on.get("/partial/{item_id}", name="partial")(functools.partial(scaled, by=3))


def declare_kinds_of_answers(on: FastAPI | APIRouter) -> None:
    @on.get("/page", response_class=HTMLResponse)
    async def page() -> str:
        return "<p>page</p>"

    @on.get("/loud/{text}", response_class=Loud)
    async def loud(text: str) -> Any:
        return text

    @on.delete("/empty", status_code=204)
    async def empty() -> None:
        return None

    @on.get("/response/{text}")
    async def response(text: str) -> Response:
        return PlainTextResponse(text, headers={"X-Own": "1"})

    @on.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(parts())

    @on.get("/refused")
    async def refused() -> None:
        raise HTTPException(418, headers={"X-Why": "tea"})

    @on.get("/tea/{leaf:path}", deprecated=True, tags=["tea"], responses={418: {"model": Item}})
    async def tea(leaf: str) -> None:
        raise WantsTeaError(leaf)


def declare_others(on: FastAPI | APIRouter) -> None:
    @on.get("/sync/{item_id}")
    def sync(item_id: int) -> int:
        return item_id

    @on.get("/later/{item_id}", status_code=202)
    async def later(item_id: int, tasks: BackgroundTasks, request: Request) -> int:
        tasks.add_task(request.app.state.done.append, item_id)
        return item_id

    @on.get("/headed")
    async def headed(response: Response, x: Annotated[str | None, Header()] = None) -> str | None:
        response.headers["X-More"] = "1"
        return x

    @on.get("/given/{item_id}")
    async def given_value(item_id: int, number: Annotated[int, Depends(lambda: 1)]) -> int:
        return item_id + number

    @on.post("/body")
    async def body(item: Item) -> Item:
        return item

    @on.get("/lines")
    async def lines() -> AsyncIterator[Item]:
        yield Item(id=1)


def declare(on: FastAPI | APIRouter) -> None:
    declare_simple(on)
    declare_others(on)


def direct(kind: type[APIRoute], **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.router.route_class = kind
    declare(app)
    return app


def included(kind: type[APIRoute]) -> FastAPI:
    app, router = FastAPI(default_response_class=JSONResponse), APIRouter(route_class=kind, prefix="/r")
    app.include_router(router, prefix="/in", tags=["in"], responses={404: {"description": "none"}})
    app.include_router(router, default_response_class=Loud)
    declare(router)  # after `include_router`, as FastAPI allows
    return app


def nested(kind: type[APIRoute]) -> FastAPI:
    app, outer, inner = FastAPI(), APIRouter(), APIRouter(route_class=kind, default_response_class=PlainTextResponse)
    declare(inner)
    outer.include_router(inner, prefix="/inner")
    app.include_router(outer, prefix="/outer")
    return app


def mounted(kind: type[APIRoute]) -> FastAPI:
    app = FastAPI()
    app.mount("/sub", direct(kind))
    return app


def made(kind: type[APIRoute], build: Callable[..., FastAPI]) -> FastAPI:
    app = build(kind)
    done: list[int] = []
    inner = [route.app for route in app.routes if isinstance(route, Mount)]
    for one in [app, *(each for each in inner if isinstance(each, FastAPI))]:

        @one.exception_handler(WantsTeaError)
        async def brew(request: Request, error: WantsTeaError) -> Response:
            return PlainTextResponse(f"{error} at {request.url.path}", 418)

        @one.exception_handler(RequestValidationError)
        async def tell(request: Request, error: RequestValidationError) -> Response:
            return PlainTextResponse(f"{error.errors()} {error.body} {error.endpoint_ctx} {error}", 422)

        one.state.done = done
    return app


PREFIXES = {direct: [""], included: ["/in/r", "/r"], nested: ["/outer/inner"], mounted: ["/sub"]}
PAIRS = {
    prefix: (made(APIRoute, build), made(SimpleRoute, build))
    for build, prefixes in PREFIXES.items()
    for prefix in prefixes
}
