"""A clock that stands still, and the room's services over each engine in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.security import Accounts, Sessions
from svc_infra.security._policy import Policy
from svc_infra.security.add import add_auth_users
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import User
from svc_infra.security.passwords import PasswordHasher
from svc_infra.security.tokens import AccessTokens
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import wiring_of

SECRET = SecretStr("a test secret of more than 32 bytes, no less")
PASSWORD = "correct horse battery"


@dataclass
class World:
    """The room without HTTP."""

    db: AsyncDatabase
    clock: FakeClock
    keys: KeyRing
    tokens: AccessTokens
    hasher: PasswordHasher
    sessions: Sessions
    accounts: Accounts

    async def register(self, email: str = "ana@example.com") -> UUID:
        async with self.db.session() as session:
            return (await self.accounts.register(session, email=email, password=PASSWORD)).id

    async def change(self, user_id: UUID, **values: object) -> None:
        async with self.db.session() as session:
            user = await session.get_one(User, user_id)
            for name, value in values.items():
                setattr(user, name, value)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys() -> KeyRing:
    return KeyRing(SECRET)


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = PasswordHasher(memory_kib=64, passes=1)
    yield hasher
    hasher.close()


def tokens_for(keys: KeyRing, clock: FakeClock) -> AccessTokens:
    return AccessTokens(keys, issuer="us", audience="them", ttl_seconds=900, clock=clock)


def sessions_for(db: AsyncDatabase, keys: KeyRing, clock: FakeClock, *, grace_seconds: float = 10) -> Sessions:
    tokens = tokens_for(keys, clock)
    policy = Policy({"reader": ["report.read"]})
    return Sessions(db, tokens, keys, policy, ttl_seconds=86400, grace_seconds=grace_seconds, clock=clock)


@pytest.fixture
def world(db: AsyncDatabase, clock: FakeClock, keys: KeyRing, hasher: PasswordHasher) -> World:
    sessions = sessions_for(db, keys, clock)
    accounts = Accounts(db, hasher, sessions, clock=clock)
    return World(db, clock, keys, tokens_for(keys, clock), hasher, sessions, accounts)


@dataclass
class Client:
    """A client of an app that is running."""

    app: FastAPI
    http: httpx2.AsyncClient
    clock: FakeClock
    tokens: dict[str, Any] = field(default_factory=dict)

    async def register(self, email: str = "ana@example.com", password: str = PASSWORD) -> UUID:
        response = await self.http.post("/auth/register", json={"email": email, "password": password})
        assert response.status_code == 201, response.text
        return UUID(response.json()["id"])

    async def log_in(self, email: str = "ana@example.com", password: str = PASSWORD) -> Client:
        """A client that is logged in, registered before if need be."""
        response = await self.http.post("/auth/login", json={"email": email, "password": password})
        assert response.status_code == 200, response.text
        return Client(self.app, self.http, self.clock, response.json())

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens['access_token']}"}

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        return await self.http.get(path, headers={**self.bearer, **headers})

    async def refresh(self) -> httpx2.Response:
        return await self.http.post("/auth/refresh", json={"refresh_token": self.tokens["refresh_token"]})


def service(db: AsyncDatabase | str, clock: FakeClock, *, env: str = "test", **sections: Any) -> FastAPI:
    """An app with a database and accounts, not yet started."""
    settings = Settings(app={"env": env}, auth={"hash_concurrency": 2, **sections.pop("auth", {})}, **sections)
    app = create_app(settings=settings)
    if isinstance(db, str):
        add_db(app, url=db)
    else:
        add_db(app, database=db)
    add_auth_users(app, roles={"reader": ["report.read"], "operator": ["tenant.any"]})
    wiring_of(app).provide(Clock, clock)
    return app


@asynccontextmanager
async def running(app: FastAPI, clock: FakeClock) -> AsyncIterator[Client]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        yield Client(app, http, clock)


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Insist on a refusal of this kind; gives its problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    return problem
