"""Apps with second factors, and an authenticator app in a pocket."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2
import pyotp
import pytest
from fastapi import FastAPI

from svc_infra.db import AsyncDatabase
from svc_infra.security.http import Identity, OptionalIdentity
from svc_infra.security.mfa import Requirement
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.mfa.recovery import RecoveryCodes
from svc_infra.security.permissions import RequireFreshAuth
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, running, service

ANA = "ana@example.com"


def with_mfa(
    db: AsyncDatabase | str,
    clock: FakeClock,
    *,
    required: Requirement | None = None,
    passkeys: bool = True,
    **sections: Any,
) -> FastAPI:
    """An app with second factors and routes that tell who is calling, not yet started."""
    app = service(db, clock, **sections)
    add_mfa(app, required=required, passkeys=passkeys)

    @app.get("/me")
    async def me(user: Identity) -> dict[str, Any]:
        return {"id": str(user.id), "methods": user.methods, "roles": sorted(user.roles)}

    @app.get("/maybe")
    async def maybe(user: OptionalIdentity) -> bool:
        return user is not None

    @app.post("/danger", dependencies=[RequireFreshAuth(max_age_seconds=60)])
    async def danger() -> str:
        return "done"

    return app


@dataclass
class Owner:
    """Somebody with an account, and perhaps with an authenticator app."""

    client: Client
    id: UUID
    email: str = ANA
    secret: str = ""
    recovery_codes: list[str] = field(default_factory=list)

    @property
    def http(self) -> httpx2.AsyncClient:
        return self.client.http

    @property
    def db(self) -> AsyncDatabase:
        return wiring_of(self.client.app).get(AsyncDatabase)

    @property
    def recovery(self) -> RecoveryCodes:
        return wiring_of(self.client.app).get(RecoveryCodes)

    @property
    def clock(self) -> FakeClock:
        return self.client.clock

    def code(self, *, steps: int = 0) -> str:
        """What the app shows now, or shows some steps later."""
        return pyotp.TOTP(self.secret).at(self.clock.now(), counter_offset=steps)

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.http.post(path, json=body, headers=self.client.bearer)

    async def log_in(self, password: str = PASSWORD, **body: Any) -> httpx2.Response:
        """The first step of a login."""
        return await self.http.post("/auth/login", json={"email": self.email, "password": password, **body})

    async def step(self) -> str:
        """The token of a second step."""
        answer = await self.log_in()
        assert answer.status_code == 202, answer.text
        return str(answer.json()["mfa_token"])

    async def verify(self, token: str, code: str) -> httpx2.Response:
        return await self.http.post("/auth/mfa/verify", json={"mfa_token": token, "code": code})

    async def enrol_totp(self, name: str = "Phone") -> dict[str, Any]:
        """Enrol the app with this login; the app's clock is one step further then."""
        begun = await self.post("/auth/mfa/totp", name=name)
        assert begun.status_code == 201, begun.text
        self.secret = begun.json()["secret"]
        done = await self.post(f"/auth/mfa/totp/{begun.json()['id']}/confirm", code=self.code())
        assert done.status_code == 200, done.text
        self.recovery_codes = done.json()["recovery_codes"] or self.recovery_codes
        self.clock.advance(30)
        enrolled: dict[str, Any] = done.json()
        return enrolled


async def owner_of(client: Client, email: str = ANA) -> Owner:
    """Somebody who has registered and logged in."""
    user_id = await client.register(email)
    return Owner(await client.log_in(email), user_id, email)


@pytest.fixture
async def ana(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Owner]:
    """Ana is logged in, on each engine in turn."""
    async with running(with_mfa(db, clock), clock) as client:
        yield await owner_of(client)


@pytest.fixture
async def here(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Owner]:
    """Ana is logged in; for what does not depend on the engine."""
    async with running(with_mfa(sqlite_db, clock, mfa={"email_codes": True}), clock) as client:
        yield await owner_of(client)


def claims(token: str) -> dict[str, Any]:
    """What a token says."""
    payload = token.split(".")[1]
    said: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return said
