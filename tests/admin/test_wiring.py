"""What `add_admin` takes, and from where."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.responses import Response
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.admin.add import cookie_keys
from svc_infra.admin.impersonation import ImpersonationNotice
from svc_infra.admin.impersonation.http import ActingAs
from svc_infra.api.fastapi.admin import add_admin
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, MissingSecretError
from svc_infra.security.access.http import route_policies
from svc_infra.security.cookies import Cookies
from svc_infra.security.http import ActsAs
from svc_infra.security.keyring import KeyRing
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.admin.conftest import an_app, staged
from tests.security.conftest import running

STRONG = "a secret of more than thirty-two bytes, for a test"


async def test_without_a_secret_nothing_starts_in_prod(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", STRONG)
    with pytest.raises(MissingSecretError, match="ADMIN_IMPERSONATION_SECRET is not set"):
        async with running(an_app(sqlite_db, clock, env="prod"), clock):
            pass
    async with running(an_app(sqlite_db, clock, env="prod", enable_impersonation=False), clock):
        pass  # it needs none


def test_where_the_secret_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(env: str, given: str | None = None) -> bytes:
        return cookie_keys(Settings(app={"env": env}), given).derived("test")[0]

    def of(secret: str) -> bytes:
        return KeyRing(SecretStr(secret)).derived("test")[0]

    for env in ("local", "test"):
        assert key(env) == key(env)
        assert key(env, "dev-secret") == of("dev-secret")
    for env in ("dev", "prod"):
        with pytest.raises(MissingSecretError, match="ADMIN_IMPERSONATION_SECRET is not set"):
            key(env)
        with pytest.raises(ConfigurationError, match="ADMIN_IMPERSONATION_SECRET"):
            key(env, "dev-secret")
        assert key(env, STRONG) == of(STRONG)
    for name, secret in (("APP_SECRET", f"{STRONG} 1"), ("ADMIN_IMPERSONATION_SECRET", f"{STRONG} 2")):
        monkeypatch.setenv(name, "short")
        with pytest.raises(ConfigurationError, match=f"{name} .*shorter than 32"):
            key("prod")
        monkeypatch.setenv(name, secret)
        assert key("prod") == of(secret)
        assert key("prod", STRONG) == of(STRONG)


def test_after_a_change_of_the_secret_the_one_before_is_still_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def cookies() -> Cookies:
        return Cookies(cookie_keys(Settings(app={"env": "test"})))

    monkeypatch.setenv("ADMIN_IMPERSONATION_SECRET", f"{STRONG} 1")
    old = cookies().sign("impersonation", "x", max_age_seconds=60)
    monkeypatch.setenv("ADMIN_IMPERSONATION_SECRET", f"{STRONG} 2")
    assert cookies().verify("impersonation", old) is None
    monkeypatch.setenv("ADMIN_IMPERSONATION_SECRET_PREVIOUS", f"{STRONG} 1")
    assert cookies().verify("impersonation", old) == "x"


def test_what_is_said_in_code_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def cookie(**said: Any) -> tuple[str, str]:
        app = create_app(settings=Settings(app={"env": "test"}))
        add_admin(app, **said)
        acting, response = wiring_of(app).get(ActsAs), Response()
        assert isinstance(acting, ActingAs)
        acting.give(response, "token")
        [morsel] = SimpleCookie(response.headers["set-cookie"]).values()
        return morsel.key, morsel["max-age"]

    assert cookie() == ("impersonation", "900")
    monkeypatch.setenv("ADMIN_IMPERSONATION_TTL", "600")
    monkeypatch.setenv("ADMIN_IMPERSONATION_COOKIE", "other")
    assert cookie() == ("other", "600")
    assert cookie(ttl_seconds=900, cookie_name="impersonation") == ("impersonation", "900")


@pytest.mark.parametrize(
    "wrong", [{"ttl_seconds": 0}, {"ttl_seconds": 3601}, {"cookie_name": "a b"}, {"cookie_name": ""}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="ADMIN_IMPERSONATION_"):
        add_admin(create_app(settings=Settings(app={"env": "test"})), **wrong)


def test_wiring_twice_changes_nothing() -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_admin(app)
    routes = [str(route) for route in route_policies(app)]
    add_admin(app, base_path="/elsewhere", cookie_name="other")
    assert [str(route) for route in route_policies(app)] == routes
    assert len([one for one in app.user_middleware if vars(one)["cls"] is ImpersonationNotice]) == 1


def test_every_route_says_who_may_call_it() -> None:
    app = create_app(settings=Settings(app={"env": "test"}))
    add_admin(app)
    declared = {str(route): route.policies for route in route_policies(app) if route.path.startswith("/admin")}
    for route, policies in declared.items():
        if route == "POST /admin/impersonate/stop":
            assert policies == ("login, also while acting as a user",)
        else:
            assert [policy for policy in policies if policy.startswith("permission ")], route
            assert ("role admin" in policies) is (not route.startswith("GET ")), route
    assert len(declared) == 17


async def test_without_impersonation_nothing_of_it_is_there(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with staged(an_app(sqlite_db, clock, enable_impersonation=False), sqlite_db, clock) as stage:
        ada = await stage.person("ada", impersonation="anything")
        assert (await ada.start(stage.ids["bob"])).status_code == 404
        assert (await ada.whoami())["email"] == stage.email("ada")
        assert (await ada.send("GET", "/admin/users")).status_code == 200


async def test_other_paths_than_the_default(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with staged(an_app(sqlite_db, clock, base_path="/staff"), sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        body = {"user_id": str(stage.ids["bob"]), "reason": "why"}
        assert (await ada.send("POST", "/staff/impersonate/start", json=body)).status_code == 204
        assert (await ada.send("GET", "/staff/roles")).status_code == 200
        assert (await ada.start(stage.ids["bob"])).status_code == 404


def test_an_app_without_accounts_says_so_at_start() -> None:
    app = create_app(settings=Settings(app={"env": "test"}, sql={"url": "sqlite://"}))
    add_admin(app)
    with pytest.raises(ConfigurationError, match="add_auth_users"), TestClient(app):
        pass
