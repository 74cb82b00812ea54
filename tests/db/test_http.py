"""The database in handlers: one unit of work for each request, ended before the response is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, get_args

import httpx2 as httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from starlette.testclient import TestClient

from svc_infra.app.problems import add_problems
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.db import http as db_http
from svc_infra.db.add import add_db
from svc_infra.db.http import DbSession, ReadSession, get_db
from svc_infra.wiring import wiring_of

INSERT = text("INSERT INTO notes VALUES (1)")
COUNT = text("SELECT count(*) FROM notes")


@pytest.fixture
async def app(db: AsyncDatabase) -> AsyncIterator[FastAPI]:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}))
    add_problems(app)
    add_db(app, database=db)
    async with db.session() as session:
        unique = "UNIQUE DEFERRABLE INITIALLY DEFERRED" if db.dialect == "postgresql" else "UNIQUE"
        await session.execute(text(f"CREATE TABLE notes (x integer {unique})"))
    async with app.router.lifespan_context(app):
        yield app


@asynccontextmanager
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def count(db: AsyncDatabase) -> int:
    async with db.session(read_only=True) as session:
        return (await session.execute(COUNT)).scalar_one()


async def test_a_request_commits_before_its_response_is_sent(app: FastAPI, db: AsyncDatabase) -> None:
    order: list[str] = []

    @app.post("/notes")
    async def add(session: DbSession) -> dict[str, str]:
        await session.execute(INSERT)
        after_commit(session, lambda: order.append("committed"))
        return {}

    async def sending(scope: object, receive: object, send: object) -> None:
        async def watched(message: dict[str, object]) -> None:
            order.append(str(message["type"]))
            await send(message)  # type: ignore[operator]

        await app(scope, receive, watched)  # type: ignore[arg-type]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(sending), base_url="http://test") as http:
        assert (await http.post("/notes")).status_code == 200
    assert order[:2] == ["committed", "http.response.start"]
    assert await count(db) == 1


async def test_a_commit_that_fails_is_an_error_response(app: FastAPI, db: AsyncDatabase) -> None:
    @app.post("/notes")
    async def add(session: DbSession) -> dict[str, str]:
        await session.execute(INSERT)
        await session.execute(INSERT)  # PostgreSQL finds out when it commits
        return {}

    async with client(app) as http:
        response = await http.post("/notes")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert await count(db) == 0


@pytest.mark.parametrize(("error", "status"), [(KeyError("x"), 500), (HTTPException(418), 418)])
async def test_a_handler_that_raises_rolls_back(error: Exception, status: int, app: FastAPI, db: AsyncDatabase) -> None:
    @app.post("/notes")
    async def add(session: DbSession) -> None:
        await session.execute(INSERT)
        raise error

    async with client(app) as http:
        assert (await http.post("/notes")).status_code == status
    assert await count(db) == 0
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_request_that_is_cancelled_gives_its_connection_back(app: FastAPI, db: AsyncDatabase) -> None:
    entered = asyncio.Event()

    @app.post("/notes")
    async def add(session: DbSession) -> None:
        await session.execute(INSERT)
        entered.set()
        await asyncio.Event().wait()

    async with client(app) as http:
        request = asyncio.create_task(http.post("/notes"))
        await entered.wait()
        request.cancel()
        await asyncio.wait({request})
    assert await count(db) == 0
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_all_of_a_request_shares_one_unit_of_work(app: FastAPI) -> None:
    async def other(session: DbSession) -> object:
        return session

    @app.get("/same")
    async def same(session: DbSession, through: Annotated[object, Depends(other, scope="function")]) -> bool:
        return session is through

    async with client(app) as http:
        assert (await http.get("/same")).json() is True


async def test_a_reading_handler_cannot_write(app: FastAPI, db: AsyncDatabase) -> None:
    @app.get("/notes")
    async def read(session: ReadSession) -> int:
        return (await session.execute(COUNT)).scalar_one()

    @app.post("/notes")
    async def write(session: ReadSession) -> None:
        await session.execute(INSERT)

    async with client(app) as http:
        assert (await http.get("/notes")).json() == 0
        assert (await http.post("/notes")).status_code == 500
    assert await count(db) == 0


async def test_a_streamed_body_is_sent_after_the_unit_of_work_has_ended(app: FastAPI, db: AsyncDatabase) -> None:
    @app.get("/stream")
    async def stream(session: DbSession) -> StreamingResponse:
        await session.execute(INSERT)

        async def body() -> AsyncIterator[str]:
            yield str(await count(db))

        return StreamingResponse(body())

    async with client(app) as http:
        assert (await http.get("/stream")).text == "1"


async def test_get_db_is_the_apps_database(app: FastAPI, db: AsyncDatabase) -> None:
    @app.get("/same")
    async def same(found: Annotated[AsyncDatabase, Depends(get_db)]) -> bool:
        return found is db

    async with client(app) as http:
        assert (await http.get("/same")).json() is True


def test_a_websocket_can_use_the_database(sqlite_url: str) -> None:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "test"}))
    add_db(app, url=sqlite_url)

    @app.websocket("/ws")
    async def answer(websocket: WebSocket, db: Annotated[AsyncDatabase, Depends(get_db)]) -> None:
        await websocket.accept()
        await db.ping()
        await websocket.send_text("pong")

    with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
        assert websocket.receive_text() == "pong"


async def test_without_a_database_the_error_names_the_call() -> None:
    app = FastAPI()
    wiring_of(app, settings=Settings(app={"env": "local"}))
    add_problems(app)

    @app.get("/")
    async def read(session: DbSession) -> None: ...

    async with client(app) as http:
        response = await http.get("/")
    assert response.status_code == 500
    assert "add_db(app)" in response.text


def test_only_what_has_the_right_scope_is_public() -> None:
    assert db_http.__all__ == ["DbSession", "ReadSession", "get_db"]
    for annotated in (DbSession, ReadSession):
        [_, depends] = get_args(annotated)
        assert depends.scope == "function"
