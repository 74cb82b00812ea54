"""Acting as a user, from outside: begun, seen, stopped."""

from __future__ import annotations

import json
import logging
from http.cookies import SimpleCookie
from uuid import uuid4

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.security.cookies import CSRF_COOKIE
from svc_infra.testing import FakeClock
from tests.admin.conftest import HEADER, Stage, an_app, staged
from tests.security.conftest import PASSWORD, assert_problem


@pytest.mark.asyncio(loop_scope="module")
async def test_an_admin_acts_as_a_user_until_stopped(stage: Stage) -> None:
    ada, bob = await stage.person("ada"), str(stage.ids["bob"])
    started = await ada.start(bob)
    assert (started.status_code, started.content) == (204, b"")
    assert await ada.whoami() == {
        "id": bob,
        "email": stage.email("bob"),
        "roles": ["admin"],  # the actor's
        "via": "impersonated",
        "actor": str(ada.id),
    }
    assert (await ada.send("GET", "/auth/me")).json()["email"] == stage.email("bob")
    stopped = await ada.stop()
    assert (stopped.status_code, stopped.content) == (204, b"")
    assert dict(ada.http.cookies) == {}
    assert (await ada.whoami())["email"] == stage.email("ada")
    assert [entry.action for entry in await stage.entries("admin.")] == [
        "admin.impersonation.started",
        "admin.impersonation.stopped",
    ]


@pytest.mark.asyncio(loop_scope="module")
async def test_both_ends_are_on_record_with_who_whom_and_why(sqlite_stage: Stage) -> None:
    ada, bob = await sqlite_stage.person("ada"), str(sqlite_stage.ids["bob"])
    await ada.start(bob, reason="  Investigating #789 ")
    await ada.send("POST", "/notes")
    await ada.stop()
    started, note, stopped = [
        entry for entry in await sqlite_stage.entries() if entry.action.startswith(("admin.", "note."))
    ]
    assert (started.actor_id, started.target) == (str(ada.id), f"user:{bob}")
    assert json.loads(started.after or "") == {
        "actor_id": str(ada.id),
        "target_id": bob,
        "reason": "Investigating #789",
        "expires_in": 900,
        "read_only": False,
    }
    assert (note.actor_id, note.acting_as) == (str(ada.id), bob)
    assert json.loads(stopped.after or "") == {"actor_id": str(ada.id), "target_id": bob, "reason": "manual"}
    assert stopped.actor_id == str(ada.id)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_log_has_the_documented_lines_after_the_commit(
    sqlite_stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    ada = await sqlite_stage.person("ada")
    with caplog.at_level(logging.INFO, "svc_infra.api.fastapi.admin"):
        await ada.start(sqlite_stage.ids["bob"])
        await ada.stop()
    lines = [record for record in caplog.records if record.name == "svc_infra.api.fastapi.admin"]
    assert [line.message for line in lines] == ["admin.impersonation.started", "admin.impersonation.stopped"]
    assert vars(lines[0])["expires_in"] == 900
    assert vars(lines[1])["reason"] == "manual"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_log_says_at_debug_why_a_cookie_is_not_accepted_and_the_client_is_not_told(
    sqlite_stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    ada, other = await sqlite_stage.person("ada"), await sqlite_stage.person("ada")
    await ada.start(sqlite_stage.ids["bob"])
    token = ada.http.cookies["impersonation"]
    await ada.stop()
    with caplog.at_level(logging.DEBUG, "svc_infra.api.fastapi.admin"):
        for who, value in ((ada, token), (other, token), (ada, "x")):
            answer = await who.send("GET", "/whoami", headers={"Cookie": f"impersonation={value}"})
            assert answer.json()["code"] == "impersonation_ended"
            assert "manual" not in answer.text
    lines = [record for record in caplog.records if record.message == "admin.impersonation.not_accepted"]
    assert [vars(line)["refusal"].partition(",")[0] for line in lines] == ["manual", *["its time is over"] * 2]


@pytest.mark.parametrize("env", ["test", "prod"])
async def test_the_cookie_is_out_of_reach_of_scripts_other_sites_and_in_prod_of_networks(
    env: str, sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTH_SECRET", "ADMIN_IMPERSONATION_SECRET"):
        monkeypatch.setenv(name, "a secret of more than thirty-two bytes, for a test")
    monkeypatch.setenv("AUTH_REQUIRE_VERIFIED", "false")
    monkeypatch.setenv("AUTH_BREACH_CHECK", "false")
    app = an_app(sqlite_db, clock, env=env, ttl_seconds=600, cookie_name="as-user")
    async with staged(app, sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        answer = await ada.start(stage.ids["bob"])
        [morsel] = SimpleCookie(answer.headers["set-cookie"]).values()
        assert (morsel.key, morsel["max-age"], morsel["path"]) == ("as-user", "600", "/")
        assert (morsel["httponly"], morsel["samesite"]) == (True, "lax")
        assert bool(morsel["secure"]) is (env == "prod")
        [gone] = SimpleCookie((await ada.stop()).headers["set-cookie"]).values()
        assert (gone.key, gone.value, gone["max-age"]) == ("as-user", "", "0")


@pytest.mark.asyncio(loop_scope="module")
async def test_every_answer_says_as_whom_it_acted(sqlite_stage: Stage) -> None:
    ada, bob = await sqlite_stage.person("ada"), str(sqlite_stage.ids["bob"])

    assert HEADER not in (await ada.send("GET", "/whoami")).headers
    await ada.start(bob)
    for method, path, status in (
        ("GET", "/whoami", 200),
        ("POST", "/notes", 201),
        ("POST", "/auth/password", 403),
        ("GET", f"/admin/users/{uuid4()}", 404),
        ("GET", "/admin/users?limit=0", 422),
    ):
        answer = await ada.send(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.headers.get(HEADER)) == (status, bob), (path, answer.text)
    await ada.stop()
    assert HEADER not in (await ada.send("GET", "/whoami")).headers


@pytest.mark.asyncio(loop_scope="module")
async def test_requests_without_a_dependency_on_the_caller_are_nobodys(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    await ada.start(sqlite_stage.ids["bob"])
    cookie_alone = await ada.http.get("/whoami")
    assert (cookie_alone.status_code, cookie_alone.json()) == (200, {})
    assert (await ada.http.get("/auth/me")).status_code == 401
    assert HEADER not in cookie_alone.headers


@pytest.mark.asyncio(loop_scope="module")
async def test_a_browser_with_cookies_proves_that_a_page_of_the_app_has_sent_a_change(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    login = {"email": sqlite_stage.email("ada"), "password": PASSWORD, "cookies": True}
    assert (await ada.http.post("/auth/login", json=login)).status_code == 200
    body = {"user_id": str(sqlite_stage.ids["bob"]), "reason": "case 789"}
    proof = {"X-CSRF-Token": ada.http.cookies[CSRF_COOKIE]}
    assert_problem(await ada.http.post("/admin/impersonate/start", json=body), 403, "forbidden")
    assert (await ada.http.post("/admin/impersonate/start", json=body, headers=proof)).status_code == 204
    assert (await ada.http.get("/whoami")).json()["via"] == "impersonated"
    assert_problem(await ada.http.post("/notes"), 403, "forbidden")
    foreign = {**proof, "Origin": "https://evil.example"}
    assert_problem(await ada.http.post("/notes", headers=foreign), 403, "forbidden")
    assert (await ada.http.post("/notes", headers=proof)).status_code == 201
    assert_problem(await ada.http.post("/admin/impersonate/stop"), 403, "forbidden")
    assert (await ada.http.get("/whoami")).json()["via"] == "impersonated"
    assert (await ada.http.post("/admin/impersonate/stop", headers=proof)).status_code == 204
    assert (await ada.http.get("/whoami")).json()["via"] == "cookie"


@pytest.mark.asyncio(loop_scope="module")
async def test_to_look_only_is_to_look_only(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    await ada.start(sqlite_stage.ids["bob"], read_only=True)
    assert (await ada.whoami())["email"] == sqlite_stage.email("bob")
    assert "to look only" in assert_problem(await ada.send("POST", "/notes"), 403, "forbidden")["detail"]
    assert await sqlite_stage.entries("note.") == []
    assert (await ada.stop()).status_code == 204


async def test_an_app_can_let_nobody_change_anything(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with staged(an_app(sqlite_db, clock, read_only=True), sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        await ada.start(stage.ids["bob"], read_only=False)
        assert_problem(await ada.send("POST", "/notes"), 403, "forbidden")


BODIES = {
    "no reason": {"user_id": "x"},
    "an empty reason": {"user_id": "x", "reason": ""},
    "a blank reason": {"user_id": "x", "reason": "   "},
    "a long reason": {"user_id": "x", "reason": "x" * 501},
    "no user": {"reason": "why"},
    "a number": {"user_id": 5, "reason": "why"},
    "a long id": {"user_id": "x" * 65, "reason": "why"},
    "a space": {"user_id": "a b", "reason": "why"},
    "a line break": {"user_id": "a\n", "reason": "why"},
    "another letter": {"user_id": "é", "reason": "why"},
    "something else": {"user_id": "x", "reason": "why", "actor_id": "y"},
}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_of_another_form_is_refused(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    for name, body in BODIES.items():
        answer = await ada.send("POST", "/admin/impersonate/start", json=body)
        assert answer.status_code == 422, name
    assert await sqlite_stage.rows() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_an_api_key_neither_begins_nor_goes_on(sqlite_stage: Stage) -> None:
    ada = await sqlite_stage.person("ada")
    key = (await ada.send("POST", "/auth/api-keys", json={"name": "k", "scopes": ["admin.impersonate"]})).json()["key"]
    await ada.start(sqlite_stage.ids["bob"])
    by_key = {"X-API-Key": key}
    assert_problem(await ada.http.get("/whoami", headers=by_key), 403, "impersonation_ended")
    fresh = await sqlite_stage.person("ada")
    body = {"user_id": str(sqlite_stage.ids["bob"]), "reason": "why"}
    for path in ("start", "stop"):
        answer = await fresh.http.post(f"/admin/impersonate/{path}", json=body, headers=by_key)
        assert_problem(answer, 403, "forbidden")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_login_acts_as_one_user_at_a_time_and_never_through_another(stage: Stage) -> None:
    ada, bob, sue = await stage.person("ada"), stage.ids["bob"], stage.ids["sue"]
    await ada.start(bob)
    nested = assert_problem(await ada.start(sue), 403, "forbidden")
    assert "stop that first" in nested["detail"]
    assert (await ada.whoami())["id"] == str(bob)
    old = dict(ada.http.cookies)
    ada.http.cookies.clear()  # the browser has forgotten it
    assert (await ada.start(sue)).status_code == 204
    assert [row.end_reason for row in await stage.rows()] == ["replaced", None]
    ada.http.cookies.clear()
    ada.http.cookies.update(old)
    assert_problem(await ada.send("GET", "/whoami"), 403, "impersonation_ended")


@pytest.mark.asyncio(loop_scope="module")
async def test_one_admin_in_two_browsers_acts_as_two_users(sqlite_stage: Stage) -> None:
    one, two = await sqlite_stage.person("ada"), await sqlite_stage.person("ada")
    await one.start(sqlite_stage.ids["bob"])
    await two.start(sqlite_stage.ids["sue"])
    assert (await one.whoami())["email"] == sqlite_stage.email("bob")
    assert (await two.whoami())["email"] == sqlite_stage.email("sue")
    two.http.cookies.clear()
    two.http.cookies.update(dict(one.http.cookies))  # another login of the same admin
    assert_problem(await two.send("GET", "/whoami"), 403, "impersonation_ended")
