"""Guarded routes: one effect and one answer for each key, on every store; executions are counted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, File, Form, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import text

from svc_infra.db.http import DbSession
from svc_infra.errors import ForbiddenError, NotFoundError, RateLimitedError
from svc_infra.idempotency.http import Idempotent, IdempotentRoute
from tests.idempotency.shop import INSERT, Order, Shop, caller_of, key

GUARDED = [Idempotent(caller=caller_of)]


def take_orders(shop: Shop, **options: Any) -> None:
    @shop.app.post("/orders", status_code=201, dependencies=[Idempotent(caller=caller_of, **options)])
    async def order(order: Order, session: DbSession, response: Response) -> dict[str, Any]:
        shop.runs += 1
        await session.execute(INSERT, {"item": order.item})
        response.headers["Location"] = f"/orders/{shop.runs}"
        response.set_cookie("seen", "yes")
        response.headers["X-Auth-Token"] = "secret"
        return {"number": shop.runs, "item": order.item}


async def test_a_repeated_request_gets_the_first_answer_and_has_no_second_effect(shop: Shop) -> None:
    take_orders(shop)
    async with shop.client() as client:
        first = await client.post("/orders", json={"item": "té"}, headers=key())
        again = [await client.post("/orders", json={"item": "té"}, headers=key()) for _ in range(3)]
        assert (first.status_code, first.json()["number"]) == (201, 1)
        assert "idempotent-replayed" not in first.headers
        for answer in again:
            assert (answer.status_code, answer.content) == (201, first.content)
            assert answer.headers["idempotent-replayed"] == "true"
            assert answer.headers["x-request-id"] != first.headers["x-request-id"]
            for name in ("content-type", "content-length", "location"):
                assert answer.headers.get_list(name) == first.headers.get_list(name)
        assert (shop.runs, await shop.orders()) == (1, 1)


async def test_cookies_and_credentials_are_answered_once(shop: Shop) -> None:
    take_orders(shop)
    async with shop.client() as client:
        first = await client.post("/orders", json={"item": "tea"}, headers=key())
        again = await client.post("/orders", json={"item": "tea"}, headers=key())
    for name in ("set-cookie", "x-auth-token"):
        assert name in first.headers
        assert name not in again.headers


async def test_five_at_once_are_one(shop: Shop) -> None:
    take_orders(shop, wait_seconds=20)
    async with shop.client() as client:
        sent = [client.post("/orders", json={"item": "tea"}, headers=key()) for _ in range(5)]
        answers = await asyncio.gather(*sent)
        assert {(answer.status_code, answer.content) for answer in answers} == {(201, answers[0].content)}
        assert sum("idempotent-replayed" in answer.headers for answer in answers) == 4
        assert (shop.runs, await shop.orders()) == (1, 1)


async def test_a_duplicate_of_a_request_in_progress_is_told_to_come_back(shop: Shop) -> None:
    @shop.app.post("/slow", dependencies=GUARDED)
    async def slow(session: DbSession) -> str:
        shop.runs += 1
        await session.execute(INSERT, {"item": "slow"})  # on SQLite, it now holds the only write lock
        await shop.hold()
        return "done"

    async with shop.client() as client:
        first = asyncio.create_task(client.post("/slow", headers=key()))
        await shop.arrived.wait()
        refused = await client.post("/slow", headers=key())
        assert (refused.status_code, refused.headers["retry-after"]) == (409, "1")
        assert refused.json()["code"] == "idempotency_key_in_use"
        shop.may_go.set()
        assert (await first).json() == "done"
        again = await client.post("/slow", headers=key())
        assert (again.json(), again.headers["idempotent-replayed"]) == ("done", "true")
    assert shop.runs == 1


async def test_a_duplicate_may_wait_for_the_answer(shop: Shop) -> None:
    @shop.app.post("/slow", dependencies=[Idempotent(caller=caller_of, wait_seconds=20)])
    async def slow() -> str:
        shop.runs += 1
        await shop.hold()
        return "done"

    async with shop.client() as client:
        first = asyncio.create_task(client.post("/slow", headers=key()))
        await shop.arrived.wait()
        second = asyncio.create_task(client.post("/slow", headers=key()))
        await asyncio.wait({second}, timeout=0.1)
        assert not second.done()
        shop.may_go.set()
        assert (await first).content == (await second).content
        assert (await second).headers["idempotent-replayed"] == "true"
    assert shop.runs == 1


@pytest.mark.parametrize("change", ["body", "query", "path", "content-type"])
async def test_a_key_stands_for_one_request(shop: Shop, change: str) -> None:
    @shop.app.post("/items/{name}", dependencies=GUARDED)
    async def add(name: str) -> str:
        shop.runs += 1
        return name

    async with shop.client() as client:
        assert (await client.post("/items/a", content=b"{}", headers=key())).status_code == 200
        other = await client.post(
            "/items/b" if change == "path" else "/items/a",
            params={"x": "1"} if change == "query" else None,
            content=b"{ }" if change == "body" else b"{}",
            headers={**key(), **({"Content-Type": "text/plain"} if change == "content-type" else {})},
        )
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert "another request" in other.json()["detail"]
    assert shop.runs == 1


async def test_keys_of_different_callers_routes_and_methods_never_meet(shop: Shop) -> None:
    for path in ("/a", "/b"):

        @shop.app.api_route(path, methods=["POST", "PUT"], dependencies=GUARDED)
        async def count() -> int:
            shop.runs += 1
            return shop.runs

    async with shop.client() as client:
        answers = [
            (await client.request(method, path, headers={**key(), "X-Caller": caller})).json()
            for caller in ("ada", "bob")
            for path in ("/a", "/b")
            for method in ("POST", "PUT")
        ]
    assert answers == list(range(1, 9))


async def test_a_quoted_and_a_bare_key_are_the_same(shop: Shop) -> None:
    take_orders(shop)
    async with shop.client() as client:
        first = await client.post("/orders", json={"item": "tea"}, headers={"Idempotency-Key": '"abc"'})
        again = await client.post("/orders", json={"item": "tea"}, headers={"Idempotency-Key": "abc"})
    assert again.content == first.content
    assert shop.runs == 1


async def test_a_missing_or_malformed_key_is_refused(shop: Shop) -> None:
    take_orders(shop)
    async with shop.client() as client:
        missing = await client.post("/orders", json={"item": "tea"})
        empty = await client.post("/orders", json={"item": "tea"}, headers={"Idempotency-Key": '""'})
        twice = await client.post("/orders", json={"item": "tea"}, headers=[*key().items(), *key("k2").items()])
    assert [(answer.status_code, answer.json()["code"]) for answer in (missing, empty, twice)] == [
        (400, "idempotency_key_required"),
        (400, "idempotency_key_malformed"),
        (400, "idempotency_key_malformed"),
    ]
    assert "needs an `Idempotency-Key`" in missing.json()["detail"]
    assert shop.runs == 0


async def test_an_optional_key_guards_only_when_it_is_sent(shop: Shop) -> None:
    take_orders(shop, required=False)
    async with shop.client() as client:
        for _ in range(2):
            assert (await client.post("/orders", json={"item": "tea"})).status_code == 201
        for _ in range(2):
            assert (await client.post("/orders", json={"item": "tea"}, headers=key())).status_code == 201
    assert shop.runs == 3


async def test_the_handler_may_ask_for_the_key(shop: Shop) -> None:
    @shop.app.post("/echo")
    async def echo(sent: Annotated[str | None, Idempotent(caller=caller_of, required=False)]) -> str | None:
        return sent

    async with shop.client() as client:
        assert (await client.post("/echo", headers=key("mine"))).json() == "mine"
        assert (await client.post("/echo")).json() is None


async def test_an_error_that_the_handler_decided_on_is_an_answer_too(shop: Shop) -> None:
    @shop.app.post("/orders/{number}/pay", dependencies=GUARDED)
    async def pay(number: str, session: DbSession) -> None:
        shop.runs += 1
        await session.execute(INSERT, {"item": "rolled back"})
        raise NotFoundError("Order", number)

    async with shop.client() as client:
        first = await client.post("/orders/7/pay", headers=key())
        again = await client.post("/orders/7/pay", headers=key())
        assert (first.status_code, again.status_code) == (404, 404)
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert (shop.runs, await shop.orders()) == (1, 0)


def failing(status: int) -> Exception | Response:
    match status:
        case 403:
            return ForbiddenError()
        case 429:
            return RateLimitedError()
        case 500:
            return RuntimeError("a bug")
        case _:
            return PlainTextResponse("later", status)


@pytest.mark.parametrize("status", [401, 403, 408, 425, 429, 500, 503])
async def test_an_answer_about_the_moment_is_not_kept(shop: Shop, status: int) -> None:
    @shop.app.post("/try", dependencies=GUARDED)
    async def attempt() -> Response:
        shop.runs += 1
        outcome = failing(status) if shop.runs == 1 else PlainTextResponse("done")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with shop.client() as client:
        answers = [await client.post("/try", headers=key()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, 200, 200]
    assert ["idempotent-replayed" in answer.headers for answer in answers] == [False, False, True]
    assert shop.runs == 2


async def test_a_request_that_is_not_valid_leaves_its_key_free(shop: Shop) -> None:
    take_orders(shop)
    async with shop.client() as client:
        assert (await client.post("/orders", json={"item": 1}, headers=key())).status_code == 422
        assert (await client.post("/orders", content=b"{", headers=key())).status_code in (400, 415, 422)
        assert (await client.post("/orders", json={"item": "tea"}, headers=key())).status_code == 201
    assert shop.runs == 1


async def test_a_commit_that_fails_is_not_answered_with_success_later(sql_shop: Shop) -> None:
    shop = sql_shop
    orphan = text("INSERT INTO lines (parent) VALUES (:parent)")

    @shop.app.post("/lines", dependencies=GUARDED)
    async def add(session: DbSession) -> int:
        shop.runs += 1
        await session.execute(orphan, {"parent": None if shop.runs > 1 else 42})
        return shop.runs

    async with shop.client() as client:
        async with shop.db.session() as session:
            await session.execute(text("CREATE TABLE parents (id integer PRIMARY KEY)"))
            parent = "integer REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED"  # checked by the commit
            await session.execute(text(f"CREATE TABLE lines (parent {parent})"))
        answers = [await client.post("/lines", headers=key()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [409, 200, 200]
        assert [answer.text for answer in answers[1:]] == ["2", "2"]
        async with shop.db.session(read_only=True) as session:
            assert await session.scalar(text("SELECT count(*) FROM lines")) == 1


async def test_forms_and_files_are_compared_too(shop: Shop) -> None:
    @shop.app.post("/upload", dependencies=GUARDED)
    async def upload(name: Annotated[str, Form()], file: Annotated[UploadFile, File()]) -> str:
        shop.runs += 1
        return f"{name}: {(await file.read()).decode()}"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}

    def form(content: str) -> bytes:
        head = '--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nn\r\n'
        return (
            f'{head}--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{content}\r\n--b--\r\n'
        ).encode()

    async with shop.client() as client:
        first = await client.post("/upload", content=form("one"), headers={**key(), **kind})
        again = await client.post("/upload", content=form("one"), headers={**key(), **kind})
        other = await client.post("/upload", content=form("two"), headers={**key(), **kind})
    assert (first.json(), again.json(), other.status_code) == ("n: one", "n: one", 422)
    assert shop.runs == 1


async def test_every_kind_of_whole_answer_is_given_again_byte_for_byte(shop: Shop) -> None:
    answers = {
        "json": lambda: JSONResponse({"é": [1.5, None]}, 202, {"X-Kind": "json"}),
        "bytes": lambda: Response(bytes(range(256)), media_type="application/octet-stream"),
        "nothing": lambda: Response(status_code=204),
        "repeated": lambda: Response(headers={"Link": "<a>, <b>"}),
    }

    @shop.app.post("/{kind}", dependencies=GUARDED)
    async def answer(kind: str) -> Response:
        shop.runs += 1
        response = answers[kind]()
        response.headers.append("link", "<c>")
        return response

    async with shop.client() as client:
        for kind in answers:
            first, again = [await client.post(f"/{kind}", headers=key(kind)) for _ in range(2)]
            changing = ("x-request-id", "idempotent-replayed")
            first_headers, again_headers = (
                [pair for pair in one.headers.multi_items() if pair[0] not in changing] for one in (first, again)
            )
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert again_headers == first_headers
    assert shop.runs == len(answers)


async def test_a_handler_without_a_unit_of_work_is_guarded_too(shop: Shop) -> None:
    @shop.app.post("/call", dependencies=GUARDED)
    def call() -> int:
        shop.runs += 1
        return shop.runs

    async with shop.client() as client:
        assert [(await client.post("/call", headers=key())).json() for _ in range(3)] == [1, 1, 1]


async def test_an_included_router_guards_its_routes(shop: Shop) -> None:
    router = APIRouter(prefix="/v1", route_class=IdempotentRoute, dependencies=GUARDED)

    @router.post("/count")
    async def count() -> int:
        shop.runs += 1
        return shop.runs

    shop.app.include_router(router, prefix="/api")
    async with shop.client() as client:
        assert [(await client.post("/api/v1/count", headers=key())).json() for _ in range(2)] == [1, 1]


async def test_a_mounted_app_guards_its_routes(shop: Shop) -> None:
    inner = FastAPI()
    inner.router.route_class = IdempotentRoute

    @inner.post("/count", dependencies=GUARDED)
    async def count() -> int:
        shop.runs += 1
        return shop.runs

    shop.app.mount("/inner", inner)
    async with shop.client() as client:
        assert [(await client.post("/inner/count", headers=key())).json() for _ in range(2)] == [1, 1]


async def test_effect_and_answer_are_one_commit(sql_shop: Shop) -> None:
    take_orders(sql_shop)
    async with sql_shop.client() as client:
        async with sql_shop.db.session() as session:
            await session.execute(text("DROP TABLE orders"))
        assert (await client.post("/orders", json={"item": "tea"}, headers=key())).status_code == 500
        async with sql_shop.db.session() as session:
            left = await session.scalar(text("SELECT count(*) FROM svc_idempotency_keys"))
            assert left == 0
