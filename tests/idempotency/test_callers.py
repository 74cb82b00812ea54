"""Whose a key is: nobody is ever given an answer that was for somebody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI, Request

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.security import Organizations
from svc_infra.security.add import add_auth_users
from svc_infra.security.http import Identity
from svc_infra.tenancy.add import add_tenancy
from svc_infra.wiring import wiring_of
from tests.idempotency.shop import key


class Service:
    """An app with accounts and tenants, whose one guarded route says who called it."""

    def __init__(self, db: AsyncDatabase) -> None:
        self.db = db
        self.runs = 0
        self.app: FastAPI = create_app(settings=Settings(app={"env": "test"}))
        add_db(self.app, database=db)
        add_auth_users(self.app)
        add_tenancy(self.app)
        add_idempotency(self.app)

        @self.app.post("/secret", dependencies=[Idempotent()])
        async def secret(user: Identity) -> dict[str, Any]:
            self.runs += 1
            return {"email": user.email, "run": self.runs}

        @self.app.post("/optional", dependencies=[Idempotent(required=False)])
        async def optional() -> int:
            self.runs += 1
            return self.runs

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        client = httpx2.AsyncClient(transport=transport, base_url="http://test")
        async with self.app.router.lifespan_context(self.app), client:
            yield client

    async def sign_in(self, client: httpx2.AsyncClient, name: str) -> dict[str, str]:
        """Register and log in; the header with the token."""
        account = {"email": f"{name}@example.com", "password": "correct horse battery"}
        await client.post("/auth/register", json=account)
        token = (await client.post("/auth/login", json=account)).json()["access_token"]
        return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def service(sqlite_db: AsyncDatabase) -> Service:
    return Service(sqlite_db)


async def test_one_users_answer_is_never_anothers(service: Service) -> None:
    async with service.client() as client:
        ada, bob = [await service.sign_in(client, name) for name in ("ada", "bob")]
        hers = [(await client.post("/secret", headers={**key(), **ada})).json() for _ in range(2)]
        his = [(await client.post("/secret", headers={**key(), **bob})).json() for _ in range(2)]
    assert hers == [{"email": "ada@example.com", "run": 1}] * 2
    assert his == [{"email": "bob@example.com", "run": 2}] * 2


async def test_a_new_token_of_the_same_user_gets_the_answer(service: Service) -> None:
    async with service.client() as client:
        first = await client.post("/secret", headers={**key(), **await service.sign_in(client, "ada")})
        again = await client.post("/secret", headers={**key(), **await service.sign_in(client, "ada")})
    assert again.content == first.content
    assert service.runs == 1


@pytest.mark.parametrize("path", ["/secret", "/optional"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer forged"}, {"X-Forwarded-For": "1.2.3.4"}])
async def test_the_key_of_an_unknown_caller_is_refused(service: Service, path: str, headers: dict[str, str]) -> None:
    async with service.client() as client:
        ada = await service.sign_in(client, "ada")
        await client.post(path, headers={**key(), **ada})
        refused = await client.post(path, headers={**key(), **headers})
    assert refused.status_code == 401
    assert service.runs == 1


async def test_an_unknown_caller_without_a_key_is_not_told_about_keys(service: Service) -> None:
    async with service.client() as client:
        assert (await client.post("/secret")).status_code == 401
        assert (await client.post("/optional")).json() == 1


async def test_one_users_tenants_do_not_share_keys(service: Service) -> None:
    async with service.client() as client:
        ada = await service.sign_in(client, "ada")
        me = (await client.get("/auth/me", headers=ada)).json()["id"]
        tenants = []
        for name in ("one", "two"):
            with wiring_of(service.app).active():
                async with service.db.session() as session:
                    made = await Organizations(session).create(name=name, slug=name, owner_id=UUID(me))
            tenants.append(str(made.id))
        answers = [
            (await client.post("/secret", headers={**key(), **ada, "X-Tenant-Id": tenant})).json()["run"]
            for tenant in tenants * 2
        ]
        stranger = await client.post("/secret", headers={**key(), **ada, "X-Tenant-Id": str(uuid4())})
    assert answers == [1, 2, 1, 2]
    assert stranger.status_code == 403


async def test_a_caller_may_be_known_by_other_means(service: Service) -> None:
    guests = {"cookie-1": "guest 1", "cookie-2": "guest 2"}

    async def guest(request: Request) -> str | None:
        return guests.get(request.cookies.get("guest", ""))

    @service.app.post("/guest", dependencies=[Idempotent(caller=guest)])
    async def checkout() -> int:
        service.runs += 1
        return service.runs

    async with service.client() as client:

        async def send(cookie: str) -> httpx2.Response:
            return await client.post("/guest", headers={**key(), "Cookie": f"guest={cookie}"})

        assert [(await send(f"cookie-{number}")).json() for number in (1, 2, 1, 2)] == [1, 2, 1, 2]
        assert (await send("cookie-3")).status_code == 401
