from __future__ import annotations

import pytest

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.errors import ConfigurationError, MissingSecretError
from svc_infra.security.add import add_auth_users
from svc_infra.security.permissions import RequireUser
from svc_infra.testing import FakeClock
from tests.security.conftest import PASSWORD, assert_problem, running, service

ACCOUNT = {"email": "new@example.com", "password": PASSWORD}


async def test_two_apps_with_other_secrets_refuse_each_others_tokens(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = service(sqlite_db, clock)
    monkeypatch.setenv("AUTH_SECRET", "another secret of more than 32 bytes, at last")
    other = service(sqlite_db, clock)
    async with running(one, clock) as here, running(other, clock) as there:
        await here.register()
        ana = await here.log_in()
        assert (await ana.get("/auth/me")).status_code == 200
        assert_problem(await there.http.get("/auth/me", headers=ana.bearer), 401, "invalid_token")


async def test_a_secret_can_be_changed_without_logging_anyone_out(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "the first secret of more than 32 bytes, yes")
    async with running(service(sqlite_db, clock), clock) as client:
        await client.register()
        ana = await client.log_in()
    monkeypatch.setenv("AUTH_SECRET_PREVIOUS", "the first secret of more than 32 bytes, yes")
    monkeypatch.setenv("AUTH_SECRET", "the second secret of more than 32 bytes, yes")
    async with running(service(sqlite_db, clock), clock) as client:
        assert (await client.http.get("/auth/me", headers=ana.bearer)).status_code == 200
        answer = await client.http.post("/auth/refresh", json={"refresh_token": ana.tokens["refresh_token"]})
        assert answer.status_code == 200


async def test_production_does_not_start_without_a_secret(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    with pytest.raises(MissingSecretError, match="AUTH_SECRET"):
        async with running(service(sqlite_db, clock, env="prod"), clock):
            pass


async def test_an_app_without_a_database_does_not_start(clock: FakeClock) -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_auth_users(app)
    with pytest.raises(ConfigurationError, match="add_db"):
        async with running(app, clock):
            pass


async def test_rooms_can_be_added_in_any_order_and_twice(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_auth_users(app, prefix="/identity")
    add_auth_users(app, prefix="/elsewhere")
    add_db(app, database=sqlite_db)
    async with running(app, clock) as client:
        assert (await client.http.post("/identity/register", json=ACCOUNT)).status_code == 201
        assert (await client.http.post("/elsewhere/register", json=ACCOUNT)).status_code == 404


async def test_a_route_that_needs_a_user_in_an_app_without_accounts_says_what_is_missing(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = create_app(settings=Settings(app={"env": "test"}))

    @app.get("/user", dependencies=[RequireUser()])
    async def user() -> None: ...

    async with running(app, clock) as client:
        answer = await client.http.get("/user", headers={"Authorization": "Bearer x"})
        assert "add_auth_users" in assert_problem(answer, 500, "configuration_error")["detail"]
