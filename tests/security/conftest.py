"""A clock that stands still, and the room's services over each engine in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra import create_app
from svc_infra.config import AuthSettings, Settings
from svc_infra.db import AsyncDatabase, after_commit
from svc_infra.db.add import add_db
from svc_infra.security import Accounts, Credentials, Lockout, MailQueue, Sessions
from svc_infra.security.access.policy import Policy
from svc_infra.security.accounts import AccountLinks, Desk
from svc_infra.security.add import add_auth_users
from svc_infra.security.audit import AuditEntry, AuditKeys, AuditTrail
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import User
from svc_infra.security.passwords import PasswordHasher
from svc_infra.security.sessions import LiveSessions
from svc_infra.security.tokens import AccessTokens
from svc_infra.testing import FakeClock
from svc_infra.types import Clock
from svc_infra.wiring import Wiring, wiring_of

SECRET = SecretStr("a test secret of more than 32 bytes, no less")
PASSWORD = "correct horse battery"


@dataclass
class Mailbox:
    """A `MailQueue` that keeps what was sent by units of work that were committed; decoys are sent to nobody."""

    sent: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    async def send(self, session: AsyncSession, template: str, to: str, values: Mapping[str, str]) -> None:
        after_commit(session, lambda: self.sent.append((str(template), to, dict(values))))

    def to(self, address: str) -> list[str]:
        """The templates that an address got, in order."""
        return [template for template, to, _ in self.sent if to == address]

    def token(self, template: str, address: str) -> str:
        """What the last such link carries."""
        links = [values["link"] for name, to, values in self.sent if (name, to) == (template, address)]
        return links[-1].partition("#")[2]


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
    desk: Desk
    mailbox: Mailbox

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.desk, self.accounts)

    def with_desk(self, **changes: Any) -> Accounts:
        """The accounts, with another desk."""
        return Accounts(replace(self.desk, **changes))

    async def register(self, email: str = "ana@example.com") -> UUID:
        async with self.db.session() as session:
            return (await self.accounts.register(session, email=email, password=PASSWORD)).id

    async def change(self, user_id: UUID, **values: object) -> None:
        async with self.db.session() as session:
            user = await session.get_one(User, user_id)
            for name, value in values.items():
                setattr(user, name, value)

    async def audited(self) -> list[str]:
        """The actions on record, in order."""
        async with self.db.session(read_only=True) as session:
            return list(await session.scalars(select(AuditEntry.action).order_by(AuditEntry.sequence)))


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


def sessions_for(
    db: AsyncDatabase, keys: KeyRing, clock: FakeClock, *, grace_seconds: float = 10, idle_seconds: float | None = None
) -> Sessions:
    return Sessions(
        db,
        LiveSessions(db, User, clock=clock),
        AuditTrail(AuditKeys(keys), clock=clock),
        tokens_for(keys, clock),
        keys,
        Policy({"reader": ["report.read"]}),
        ttl_seconds=86400,
        idle_seconds=idle_seconds,
        grace_seconds=grace_seconds,
        clock=clock,
    )


@pytest.fixture
def world(db: AsyncDatabase, clock: FakeClock, keys: KeyRing, hasher: PasswordHasher) -> Iterator[World]:
    settings = AuthSettings()
    sessions, mailbox = sessions_for(db, keys, clock), Mailbox()
    desk = Desk(
        db=db,
        hasher=hasher,
        sessions=sessions,
        lockout=Lockout(db, keys, settings, clock=clock),
        trail=AuditTrail(AuditKeys(keys), clock=clock),
        mail=mailbox,
        links=AccountLinks(settings, clock=clock),
        clock=clock,
    )
    wiring = Wiring(Settings())
    wiring.provide(AuditTrail, desk.trail)
    with wiring.active():
        yield World(db, clock, keys, tokens_for(keys, clock), hasher, sessions, Accounts(desk), desk, mailbox)


@dataclass
class Client:
    """A client of an app that is running."""

    app: FastAPI
    http: httpx2.AsyncClient
    clock: FakeClock
    tokens: dict[str, Any] = field(default_factory=dict)

    @property
    def mailbox(self) -> Mailbox:
        mailbox = wiring_of(self.app).get(MailQueue)
        assert isinstance(mailbox, Mailbox)
        return mailbox

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
    cheap = {"hash_concurrency": 2, "hash_memory_kib": 64, "hash_passes": 1}
    settings = Settings(app={"env": env}, auth={**cheap, **sections.pop("auth", {})}, **sections)
    app = create_app(settings=settings)
    if isinstance(db, str):
        add_db(app, url=db)
    else:
        add_db(app, database=db)
    add_auth_users(app, roles={"reader": ["report.read"], "operator": ["tenant.any"]})
    wiring_of(app).provide(Clock, clock)
    wiring_of(app).provide(MailQueue, Mailbox())
    return app


@asynccontextmanager
async def running(app: FastAPI, clock: FakeClock) -> AsyncIterator[Client]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="https://test") as http,
    ):
        with wiring_of(app).active():
            yield Client(app, http, clock)


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Insist on a refusal of this kind; gives its problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    return problem
