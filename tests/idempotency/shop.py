"""An app whose orders can be counted, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from fastapi import FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import text

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.idempotency import IdempotencyStore
from svc_infra.idempotency.add import add_idempotency

CREATE = text("CREATE TABLE orders (item varchar(100))")
INSERT = text("INSERT INTO orders (item) VALUES (:item)")
COUNT = text("SELECT count(*) FROM orders")


class Order(BaseModel):
    """What a client orders."""

    item: str
    quantity: int = 1


def caller_of(request: Request) -> str | None:
    """Stands in for a verified credential; tests with real ones are in `test_callers`."""
    return request.headers.get("x-caller")


class Shop:
    """An app with an orders table.

    Attributes:
        store: Where it keeps its keys; None for the one of the settings.
        arrived, may_go: What a handler sets and waits for, where a test wants to hold it up.
    """

    def __init__(self, db: AsyncDatabase, store: IdempotencyStore | None = None, **settings: Any) -> None:
        self.db = db
        self.app: FastAPI = create_app(settings=Settings(app={"env": "test"}, **settings))
        self.runs = 0
        self.arrived = asyncio.Event()
        self.may_go = asyncio.Event()
        add_db(self.app, database=db)
        add_idempotency(self.app, store=store)

    @asynccontextmanager
    async def client(self, caller: str = "ada") -> AsyncIterator[httpx2.AsyncClient]:
        """A client of the running app."""
        async with self.db.session() as session:
            await session.execute(CREATE)
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        headers = {"X-Caller": caller}
        async with (
            self.app.router.lifespan_context(self.app),
            httpx2.AsyncClient(transport=transport, base_url="http://shop", headers=headers) as client,
        ):
            yield client

    async def hold(self) -> None:
        """What a handler waits for."""
        self.arrived.set()
        await self.may_go.wait()

    async def orders(self) -> int:
        """How many orders are committed."""
        async with self.db.session(read_only=True) as session:
            return int((await session.execute(COUNT)).scalar_one())


def key(value: str = "k1") -> dict[str, str]:
    """The header that sends this key."""
    return {"Idempotency-Key": f'"{value}"'}
