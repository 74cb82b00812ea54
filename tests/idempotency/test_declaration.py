"""What a route may declare, what is refused and when, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession
from svc_infra.errors import ConfigurationError
from svc_infra.idempotency import SqlIdempotencyStore
from svc_infra.idempotency.http import Idempotent, IdempotentRoute
from svc_infra.idempotency.key import KEY_PATTERN
from tests.idempotency.shop import COUNT, INSERT, Order, Shop, caller_of, key

GUARDED = [Idempotent(caller=caller_of)]


@pytest.fixture
def shop(sqlite_db: AsyncDatabase) -> Shop:
    return Shop(sqlite_db, SqlIdempotencyStore(sqlite_db))


async def numbers() -> AsyncIterator[int]:
    yield 1


async def number() -> int:
    return 1


@pytest.mark.parametrize(
    ("endpoint", "options", "complaint"),
    [
        (number, {"methods": ["GET"]}, "answers GET"),
        (number, {"methods": ["POST", "HEAD"]}, "answers HEAD"),
        (number, {"dependencies": [*GUARDED, Idempotent(caller=caller_of)]}, "twice"),
        (number, {"response_class": StreamingResponse}, "streams"),
        (numbers, {"response_class": EventSourceResponse}, "streams"),
        (numbers, {}, "streams"),
    ],
)
def test_a_route_that_cannot_be_guarded_is_refused_where_it_is_declared(
    endpoint: Any, options: dict[str, Any], complaint: str
) -> None:
    router = APIRouter(route_class=IdempotentRoute)
    with pytest.raises(ConfigurationError, match=complaint):
        router.add_api_route("/x", endpoint, **{"methods": ["POST"], "dependencies": GUARDED, **options})


def test_a_required_key_cannot_be_left_unguarded() -> None:
    with pytest.raises(ConfigurationError, match="when_unavailable"):
        Idempotent(when_unavailable="run")


async def test_a_plain_route_stops_the_start(shop: Shop) -> None:
    router = APIRouter()
    router.add_api_route("/x", number, methods=["POST"], dependencies=GUARDED)
    shop.app.include_router(router, prefix="/api")
    with pytest.raises(ConfigurationError, match=r"/api/x .*route_class=IdempotentRoute"):
        async with shop.client():
            pass


async def test_a_declaration_that_comes_with_the_inclusion_stops_the_start(shop: Shop) -> None:
    router = APIRouter(route_class=IdempotentRoute)
    router.add_api_route("/x", number, methods=["POST"])
    shop.app.include_router(router, dependencies=GUARDED)
    with pytest.raises(ConfigurationError, match="declare it on the route"):
        async with shop.client():
            pass


async def test_a_plain_route_that_nobody_checked_runs_nothing(shop: Shop) -> None:
    inner = FastAPI()  # what is mounted is not looked through at the start

    @inner.post("/x", dependencies=GUARDED)
    async def run() -> None:
        shop.runs += 1

    shop.app.mount("/inner", inner)
    async with shop.client() as client:
        answer = await client.post("/inner/x", headers=key())
    assert answer.status_code == 500
    assert "route_class=IdempotentRoute" in answer.json()["detail"]
    assert shop.runs == 0


async def test_a_unit_of_work_that_was_used_before_is_refused(shop: Shop) -> None:
    async def early(session: DbSession) -> None:
        await session.execute(COUNT)

    @shop.app.post("/x", dependencies=[Depends(early), *GUARDED])
    async def run(session: DbSession) -> None:
        shop.runs += 1

    async with shop.client() as client:
        answer = await client.post("/x", headers=key())
    assert answer.status_code == 500
    assert "declare Idempotent() first" in answer.json()["detail"]
    assert shop.runs == 0


async def test_an_answer_that_turns_out_to_stream_undoes_the_effect(shop: Shop) -> None:
    @shop.app.post("/x", dependencies=GUARDED)
    async def run(session: DbSession) -> StreamingResponse:
        shop.runs += 1
        await session.execute(INSERT, {"item": "tea"})
        return StreamingResponse(iter([b"1"]))

    async with shop.client() as client:
        answers = [await client.post("/x", headers=key()) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 500]
        assert "StreamingResponse, which is streamed" in answers[0].json()["detail"]
        assert (shop.runs, await shop.orders()) == (2, 0)


async def test_an_answer_that_is_too_large_undoes_the_effect(sqlite_db: AsyncDatabase) -> None:
    shop = Shop(sqlite_db, SqlIdempotencyStore(sqlite_db), idempotency={"max_answer_bytes": 1000})

    @shop.app.post("/x/{size}", dependencies=GUARDED)
    async def run(size: int, session: DbSession) -> str:
        await session.execute(INSERT, {"item": "tea"})
        return "x" * size

    async with shop.client() as client:
        assert (await client.post("/x/800", headers=key())).status_code == 200
        answer = await client.post("/x/1000", headers=key("k2"))
        assert answer.status_code == 500
        assert "IDEMPOTENCY_MAX_ANSWER_BYTES allows 1000" in answer.json()["detail"]
        assert await shop.orders() == 1


class Conflict(BaseModel):
    """A body of the application's own."""

    why: str


def test_the_document_names_the_header_and_the_refusals(shop: Shop) -> None:
    @shop.app.post("/required", dependencies=GUARDED)
    async def required(order: Order) -> None: ...

    @shop.app.post("/optional", responses={409: {"model": Conflict}}, openapi_extra={"x-mine": 1})
    async def optional(sent: Annotated[str | None, Idempotent(caller=caller_of, required=False)]) -> None: ...

    @shop.app.post("/plain")
    async def plain() -> None: ...

    router = APIRouter(route_class=IdempotentRoute, dependencies=GUARDED)
    router.add_api_route("/included", number, methods=["PUT"])
    shop.app.include_router(router)
    paths = shop.app.openapi()["paths"]
    for operation, is_required in (
        (paths["/required"]["post"], True),
        (paths["/optional"]["post"], False),
        (paths["/included"]["put"], True),
    ):
        [parameter] = [one for one in operation["parameters"] if one["name"] == "Idempotency-Key"]
        assert (parameter["in"], parameter["required"]) == ("header", is_required)
        assert parameter["schema"] == {"type": "string", "pattern": KEY_PATTERN}
        assert {"400", "409", "422"} <= set(operation["responses"])
        assert "Idempotency-Key" in operation["responses"]["422"]["description"]
    assert "application/problem+json" in paths["/required"]["post"]["responses"]["409"]["content"]
    assert "Conflict" in str(paths["/optional"]["post"]["responses"]["409"])
    assert paths["/optional"]["post"]["x-mine"] == 1
    assert "parameters" not in paths["/plain"]["post"]
