"""Who is logged in is remembered, and forgotten by every process as soon as anything about it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, delete, event, update

from svc_infra.cache import add_cache
from svc_infra.db import AsyncDatabase
from svc_infra.security import Accounts, Sessions
from svc_infra.security.models import Session, User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service
from tests.security.test_http import add_routes


@contextmanager
def reads() -> Any:
    seen: list[str] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", executed)


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """One process that is told to be alone."""
    app = service(sqlite_db, clock, auth={"token_cache": "on"})
    add_cache(app)
    add_routes(app)
    async with running(app, clock) as client:
        await client.register()
        yield await client.log_in()


async def test_the_second_request_of_a_login_reads_nothing(client: Client) -> None:
    assert (await client.get("/user")).status_code == 200
    with reads() as seen:
        assert (await client.get("/user")).status_code == 200
    assert seen == []


async def test_memory_alone_is_used_only_by_a_process_that_is_told_to_be_alone(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = service(sqlite_db, clock)
    add_cache(app)
    add_routes(app)
    async with running(app, clock) as client:
        await client.register()
        ana = await client.log_in()
        for _ in range(2):
            with reads() as seen:
                await ana.get("/user")
            assert len(seen) == 1


async def user_of(client: Client) -> UUID:
    return UUID((await client.get("/whoami")).json()["id"])


async def revoke(client: Client, db: AsyncDatabase) -> None:
    await client.http.post("/auth/logout", headers=client.bearer)


async def revoke_from_another_login(client: Client, db: AsyncDatabase) -> None:
    other = await client.log_in()
    await client.http.post("/auth/sessions/revoke-others", headers=other.bearer)


async def disable(client: Client, db: AsyncDatabase) -> None:
    user_id = await user_of(client)
    async with db.session() as session:
        await wiring_of(client.app).get(Accounts).disable(session, user_id, reason="test")


async def change_the_object(client: Client, db: AsyncDatabase) -> None:
    user_id = await user_of(client)
    async with db.session() as session:
        (await session.get_one(User, user_id)).is_active = False


async def delete_the_object(client: Client, db: AsyncDatabase) -> None:
    user_id = await user_of(client)
    async with db.session() as session:
        await session.delete(await session.get_one(User, user_id))


async def update_many(client: Client, db: AsyncDatabase) -> None:
    async with db.session() as session:
        await session.execute(update(User).values(is_active=False))


async def delete_many_sessions(client: Client, db: AsyncDatabase) -> None:
    async with db.session() as session:
        await session.execute(delete(Session))


async def change_password(client: Client, db: AsyncDatabase) -> None:
    other = await client.log_in()
    body = {"current_password": PASSWORD, "new_password": "another horse battery"}
    assert (await client.http.post("/auth/password", json=body, headers=other.bearer)).status_code == 204


async def expire(client: Client, db: AsyncDatabase) -> None:
    client.clock.advance(31 * 86400)


Change = Callable[[Client, AsyncDatabase], Awaitable[None]]
ENDS: list[Change] = [
    revoke, revoke_from_another_login, disable, change_the_object, delete_the_object, update_many,
    delete_many_sessions, change_password, expire,
]  # fmt: skip


@pytest.mark.parametrize("change", ENDS, ids=lambda change: change.__name__)
async def test_what_ends_a_login_is_effective_at_once(change: Change, client: Client, sqlite_db: AsyncDatabase) -> None:
    assert (await client.get("/user")).status_code == 200
    await change(client, sqlite_db)
    assert (await client.get("/user")).status_code == 401


async def test_roles_are_given_and_taken_at_once(client: Client, sqlite_db: AsyncDatabase) -> None:
    user_id, accounts = await user_of(client), wiring_of(client.app).get(Accounts)
    for roles, status in ((["reader"], 200), ([], 403), (["reader"], 200)):
        async with sqlite_db.session() as session:
            await accounts.set_roles(session, user_id, roles)
        assert (await client.get("/report")).status_code == status


async def test_a_change_that_is_rolled_back_changes_nothing(client: Client, sqlite_db: AsyncDatabase) -> None:
    user_id = await user_of(client)
    with pytest.raises(KeyError):
        async with sqlite_db.session() as session:
            (await session.get_one(User, user_id)).is_active = False
            await session.flush()
            raise KeyError
    assert (await client.get("/user")).status_code == 200


async def test_a_login_of_one_changes_nothing_for_others(client: Client) -> None:
    await client.register("bob@example.com")
    await client.get("/user")
    await client.log_in("bob@example.com")
    with reads() as seen:
        await client.get("/user")
    assert seen == []


async def test_two_processes_hear_of_each_others_changes(
    sqlite_db: AsyncDatabase, valkey_url: str, clock: FakeClock
) -> None:
    apps = [service(sqlite_db, clock) for _ in range(2)]
    for app in apps:
        add_cache(app, url=valkey_url)
        add_routes(app)
    async with running(apps[0], clock) as here, running(apps[1], clock) as there:
        await here.register()
        ana = await here.log_in()
        elsewhere = Client(there.app, there.http, clock, ana.tokens)
        for one in (ana, elsewhere):
            while (await read_count(one)) > 0:
                await asyncio.sleep(0)  # until the process listens, nothing is remembered
        async with sqlite_db.session() as session:
            with wiring_of(here.app).active():
                await wiring_of(here.app).get(Sessions).revoke_all(session, await user_of(ana), reason="test")
        assert_problem(await ana.get("/user"), 401, "invalid_token")
        while (await elsewhere.get("/user")).status_code == 200:
            await asyncio.sleep(0)  # the message is under way
        assert_problem(await elsewhere.get("/user"), 401, "invalid_token")


async def read_count(client: Client) -> int:
    with reads() as seen:
        assert (await client.get("/user")).status_code == 200
    return len(seen)
