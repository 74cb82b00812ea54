from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.add import purge_sessions
from svc_infra.security.models import AccountLink, Attempts, RefreshToken, Session
from svc_infra.testing import FakeClock
from svc_infra.types import new_id
from tests.security.conftest import PASSWORD, assert_problem, running, service


async def test_what_is_over_is_deleted_and_what_lives_stays(db: AsyncDatabase, clock: FakeClock) -> None:
    async with running(service(db, clock), clock) as client:
        await client.register()
        ended, expired = await client.log_in(), await client.log_in()
        await client.http.post("/auth/logout", headers=ended.bearer)
        wrong = {"email": "ana@example.com", "password": "wrong password"}
        assert_problem(await client.http.post("/auth/login", json=wrong), 401, "invalid_credentials")
        assert await purge_sessions(3600) == 0
        clock.advance(30 * 86400 + 3601)
        alive = await client.log_in()
        assert expired.tokens
        assert await purge_sessions(3600) > 0
        assert await purge_sessions(3600) == 0
        assert (await alive.get("/auth/me")).status_code == 200
    async with db.session(read_only=True) as session:
        counts = [
            await session.scalar(select(func.count()).select_from(model))
            for model in (Session, RefreshToken, AccountLink, Attempts)
        ]
    assert counts == [1, 1, 0, 1]  # the network's row is the last login's


async def test_a_login_that_was_refreshed_thousands_of_times_is_deleted_in_parts(
    db: AsyncDatabase, clock: FakeClock
) -> None:
    async with running(service(db, clock), clock) as client:
        await client.register()
        login = await client.log_in()
        await refreshed_often(db, 1200)
        clock.advance(31 * 86400 + 3601)
        assert await purge_sessions(3600, limit=1000) >= 1000
        assert await purge_sessions(3600, limit=1000) >= 202
        assert await purge_sessions(3600, limit=1000) == 0
        assert login.tokens
    async with db.session(read_only=True) as session:
        assert await session.scalar(select(func.count()).select_from(RefreshToken)) == 0
        assert await session.scalar(select(func.count()).select_from(Session)) == 0


async def test_an_account_that_was_refreshed_thousands_of_times_is_deleted(db: AsyncDatabase, clock: FakeClock) -> None:
    async with running(service(db, clock), clock) as client:
        await client.register()
        login = await client.log_in()
        await refreshed_often(db, 1200)
        body = {"password": PASSWORD}
        answer = await client.http.request("DELETE", "/auth/me", json=body, headers=login.bearer)
        assert answer.status_code == 204, answer.text


async def refreshed_often(db: AsyncDatabase, times: int) -> None:
    """Give the only login a long chain of tokens that were used."""
    async with db.session() as session:
        newest = (await session.scalars(select(RefreshToken))).one()
        rows, parent_id = [], None
        for number in range(times):
            token_id = new_id()
            rows.append(
                {
                    "id": token_id, "session_id": newest.session_id, "token_hash": f"{number:064}",
                    "parent_id": parent_id, "created_at": newest.created_at, "expires_at": newest.expires_at,
                    "used_at": newest.created_at,
                }
            )  # fmt: skip
            parent_id = token_id
        await session.execute(insert(RefreshToken), rows)
        newest.parent_id = parent_id


async def test_it_says_what_it_needs(clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError, match="outside of any app"):
        await purge_sessions()
