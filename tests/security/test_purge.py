from __future__ import annotations

import pytest
from sqlalchemy import func, select

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.security.add import purge_sessions
from svc_infra.security.models import AccountLink, Attempts, RefreshToken, Session
from svc_infra.testing import FakeClock
from tests.security.conftest import assert_problem, running, service


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


async def test_it_says_what_it_needs(clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError, match="outside of any app"):
        await purge_sessions()
