"""An app with admin routes: Ada is an admin, Sue supports, Olga audits, Bob is a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import select

from svc_infra.admin.impersonation import Impersonation
from svc_infra.api.fastapi.admin import add_admin
from svc_infra.db import AsyncDatabase
from svc_infra.db.http import DbSession
from svc_infra.security import Accounts, audit
from svc_infra.security.audit import AuditEntry
from svc_infra.security.http import OptionalIdentity
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.conftest import postgres_database
from tests.security.conftest import PASSWORD, Client, running, service

HEADER = "x-impersonating"
ROLES = {"ada": ["admin"], "sue": ["support"], "olga": ["auditor"], "abe": ["admin"], "bob": []}


def an_app(db: AsyncDatabase | str, clock: FakeClock, *, env: str = "test", **admin: Any) -> FastAPI:
    """An app with a route that says who is calling, and one that writes."""
    app = service(db, clock, env=env)
    add_api_keys(app)
    add_admin(app, **admin)

    @app.get("/whoami")
    async def whoami(user: OptionalIdentity) -> dict[str, Any]:
        if user is None:
            return {}
        actor = str(user.actor.id) if user.actor is not None else None
        return {"id": str(user.id), "email": user.email, "roles": sorted(user.roles), "via": user.via, "actor": actor}

    @app.post("/notes", status_code=201)
    async def write_note(user: OptionalIdentity, session: DbSession) -> None:
        await audit.record(session, "note.written", target="note:1")

    return app


@dataclass
class Person(Client):
    """Somebody with a login, and with cookies of their own."""

    id: UUID = field(default_factory=uuid4)

    async def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {**self.bearer, **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)

    async def start(self, user_id: object, **more: Any) -> httpx2.Response:
        body = {"user_id": str(user_id), "reason": "case 789", **more}
        return await self.send("POST", "/admin/impersonate/start", json=body)

    async def stop(self) -> httpx2.Response:
        return await self.send("POST", "/admin/impersonate/stop")

    async def whoami(self) -> dict[str, Any]:
        answer = await self.send("GET", "/whoami")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@dataclass
class Stage:
    """The app, running, with people of this test's own; it sees only what is written after they have come."""

    client: Client
    db: AsyncDatabase
    number: int = 0
    ids: dict[str, UUID] = field(default_factory=dict)
    first: UUID = field(default_factory=lambda: UUID(int=0))

    @property
    def accounts(self) -> Accounts:
        return wiring_of(self.client.app).get(Accounts)

    def email(self, name: str) -> str:
        return f"{name}{self.number}@example.com"

    async def enter(self, name: str, *roles: str) -> None:
        async with self.db.session() as session:
            made = await self.accounts.register(session, email=self.email(name), password=PASSWORD, roles=roles)
        self.ids[name] = made.id

    async def person(self, name: str, **cookies: str) -> Person:
        """A new login of this person, in a browser of its own."""
        login = await self.client.log_in(self.email(name))
        transport = httpx2.ASGITransport(self.client.app, raise_app_exceptions=False)
        http = httpx2.AsyncClient(transport=transport, base_url="https://test", cookies=cookies)
        return Person(self.client.app, http, self.client.clock, login.tokens, self.ids[name])

    async def newcomer(self, name: str, *roles: str) -> Person:
        """Somebody new, logged in."""
        await self.enter(name, *roles)
        return await self.person(name)

    async def set_roles(self, user_id: UUID, *roles: str) -> None:
        async with self.db.session() as session:
            await self.accounts.set_roles(session, user_id, roles)

    async def entries(self, action: str = "") -> list[AuditEntry]:
        wanted = select(AuditEntry).where(AuditEntry.id > self.first).order_by(AuditEntry.id)
        async with self.db.session(read_only=True) as session:
            return [entry for entry in await session.scalars(wanted) if entry.action.startswith(action)]

    async def rows(self) -> list[Impersonation]:
        """The impersonations of the people here."""
        wanted = select(Impersonation).where(Impersonation.actor_id.in_(self.ids.values()))
        async with self.db.session(read_only=True) as session:
            return list(await session.scalars(wanted.order_by(Impersonation.started_at)))

    async def user(self, name: str) -> User:
        async with self.db.session(read_only=True) as session:
            return await session.get_one(User, self.ids[name])


_numbers = count()


async def people(client: Client, db: AsyncDatabase) -> Stage:
    """New people on a stage of their own, in an app that others may use too."""
    stage = Stage(client, db, next(_numbers))
    for name, roles in ROLES.items():
        await stage.enter(name, *roles)
    async with db.session(read_only=True) as session:
        newest = await session.scalar(select(AuditEntry.id).order_by(AuditEntry.id.desc()).limit(1))
        stage.first = newest or stage.first
    return stage


@asynccontextmanager
async def staged(app: FastAPI, db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Stage]:
    """An app of this test's own."""
    async with running(app, clock) as client:
        yield await people(client, db)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@asynccontextmanager
async def _shared(url: str) -> AsyncIterator[Stage]:
    database, clock = AsyncDatabase(url), FakeClock()
    async with running(an_app(database, clock), clock) as client:
        yield Stage(client, database)
    await database.dispose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_sqlite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One app for all tests of a module: starting it takes longer than any of them."""
    async with _shared(f"sqlite:///{tmp_path_factory.mktemp('admin')}/test.db") as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgres"])
async def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The same on each engine."""
    with ExitStack() as stack:
        if request.param == "postgres":
            url = stack.enter_context(postgres_database(request.getfixturevalue("postgres_server")))
        else:
            url = f"sqlite:///{tmp_path_factory.mktemp('admin')}/test.db"
        async with _shared(url) as stage:
            yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def stage(shared: Stage) -> AsyncIterator[Stage]:
    """On each engine, with people of the test's own."""
    with wiring_of(shared.client.app).active():
        yield await people(shared.client, shared.db)


@pytest_asyncio.fixture(loop_scope="module")
async def sqlite_stage(shared_sqlite: Stage) -> AsyncIterator[Stage]:
    """For what does not depend on the engine."""
    with wiring_of(shared_sqlite.client.app).active():
        yield await people(shared_sqlite.client, shared_sqlite.db)
