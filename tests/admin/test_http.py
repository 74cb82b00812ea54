"""The routes below `/admin`, on each engine."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from pyotp import TOTP

from svc_infra import create_app
from svc_infra.admin.http import admin_router
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.security.access.http import route_policies
from svc_infra.security.mfa.add import add_mfa
from svc_infra.security.permissions import RequirePermission
from svc_infra.testing import FakeClock, Matrix, check_matrix
from tests.admin.conftest import Person, Stage, an_app, staged
from tests.security.conftest import PASSWORD, assert_problem


async def listed(person: Person, path: str) -> list[Any]:
    answer = await person.send("GET", path)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return list(found["items"] if isinstance(found, dict) else found)


async def emails(person: Person, query: str) -> list[str]:
    return [one["email"] for one in await listed(person, f"/admin/users?{query}")]


@pytest.mark.asyncio(loop_scope="module")
async def test_users_are_searched_and_shown(stage: Stage) -> None:
    sue = await stage.person("sue")
    for name in ("per%cent", "per_cent", "perfect"):
        await stage.enter(name, "reader")
    number = stage.number
    assert await emails(sue, "query=PER") == [
        f"{name}{number}@example.com" for name in ("per%cent", "per_cent", "perfect")
    ]
    assert await emails(sue, "query=per%25c") == [f"per%cent{number}@example.com"]
    assert await emails(sue, "query=per_") == [f"per_cent{number}@example.com"]
    assert await emails(sue, f"query={stage.ids['bob']}") == [stage.email("bob")]
    assert await emails(sue, "role=reader&limit=2") == [
        f"{name}{number}@example.com" for name in ("per%cent", "per_cent")
    ]
    assert await emails(sue, "role=read") == await emails(sue, "role=r_ader") == await emails(sue, "query=nobody") == []
    async with stage.db.session() as session:
        await stage.accounts.disable(session, stage.ids["perfect"], reason="spam")
    assert await emails(sue, "role=reader&active=false") == [stage.email("perfect")]
    assert len(await emails(sue, "role=reader&active=true")) == 2
    shown = (await sue.send("GET", f"/admin/users/{stage.ids['perfect']}")).json()
    assert (shown["is_active"], shown["disabled_reason"], shown["roles"]) == (False, "spam", ["reader"])
    assert "password_hash" not in shown
    assert_problem(await sue.send("GET", f"/admin/users/{uuid4()}"), 404, "not_found")
    seen = [(entry.action, entry.actor_id, entry.target) for entry in await stage.entries("admin.")]
    assert seen[-1] == ("admin.user.viewed", str(sue.id), f"user:{stage.ids['perfect']}")
    assert {action for action, _, _ in seen[:-1]} == {"admin.users.searched"}


@pytest.mark.asyncio(loop_scope="module")
async def test_pages_hold_everybody_once_also_while_others_come(stage: Stage) -> None:
    sue, path, found = await stage.person("sue"), "/admin/users?limit=7", []
    page = (await sue.send("GET", path)).json()
    await stage.enter("newcomer")
    while True:
        found += [one["email"] for one in page["items"]]
        if page["next"] is None:
            break
        page = (await sue.send("GET", f"{path}&after={page['next']}")).json()
    assert len(set(found)) == len(found)
    assert set(found) >= {stage.email(name) for name in stage.ids}


@pytest.mark.asyncio(loop_scope="module")
async def test_accounts_are_disabled_enabled_and_unlocked(stage: Stage) -> None:
    ada, bob = await stage.person("ada"), await stage.person("bob")
    path = f"/admin/users/{bob.id}"
    assert (await ada.send("POST", f"{path}/disable", json={})).status_code == 422  # a reason is a must
    assert (await ada.send("POST", f"{path}/disable", json={"reason": "spam"})).status_code == 204
    assert (await bob.send("GET", "/auth/me")).status_code == 401
    assert (await ada.send("POST", f"{path}/enable")).status_code == 204
    for _ in range(5):
        await bob.http.post("/auth/login", json={"email": stage.email("bob"), "password": "a wrong one"})
    right = {"email": stage.email("bob"), "password": PASSWORD}
    assert (await bob.http.post("/auth/login", json=right)).status_code == 429
    assert (await ada.send("POST", f"{path}/unlock")).status_code == 204
    assert (await bob.http.post("/auth/login", json=right)).status_code == 200
    own = [entry for entry in await stage.entries("account.") if entry.actor_id == str(ada.id)]
    assert [entry.action for entry in own] == ["account.disabled", "account.enabled", "account.unlocked"]
    assert {entry.target for entry in own} == {f"user:{bob.id}"}
    for what in ("disable", "enable", "unlock"):
        answer = await ada.send("POST", f"/admin/users/{uuid4()}/{what}", json={"reason": "x"})
        assert_problem(answer, 404, "not_found")


@pytest.mark.asyncio(loop_scope="module")
async def test_roles_are_given_and_taken_but_none_above_ones_own(stage: Stage) -> None:
    ada, bob = await stage.person("ada"), stage.ids["bob"]
    registry = {one["name"]: one["permissions"] for one in await listed(ada, "/admin/roles")}
    assert {"admin", "auditor", "operator", "reader", "support"} == set(registry)
    assert registry["auditor"] == ["audit.read", "billing.read", "user.read"]

    async def change(method: str, user_id: UUID, role: str) -> int:
        return (await ada.send(method, f"/admin/users/{user_id}/roles/{role}")).status_code

    for _ in range(2):  # again changes nothing
        assert await change("PUT", bob, "support") == 204
    assert (await stage.user("bob")).roles == ["support"]
    assert await change("PUT", bob, "admin") == 204
    assert await change("DELETE", bob, "support") == 204
    assert await change("DELETE", bob, "support") == 204
    assert (await stage.user("bob")).roles == ["admin"]
    assert len(await stage.entries("account.roles_changed")) == 3
    for role in ("auditor", "reader", "operator"):  # each permits something that an admin may not do
        assert await change("PUT", bob, role) == 403
    assert await change("DELETE", stage.ids["olga"], "auditor") == 403
    assert await change("PUT", bob, "nonsense") == 422
    assert await change("PUT", bob, "x" * 1000) == 422
    assert await change("PUT", uuid4(), "support") == 404
    for method, role in (("PUT", "support"), ("DELETE", "admin")):
        assert await change(method, stage.ids["ada"], role) == 403  # not their own
    await stage.set_roles(stage.ids["ada"], "admin", "auditor")
    assert await change("PUT", bob, "auditor") == 204  # who may do it may give it


@pytest.mark.asyncio(loop_scope="module")
async def test_nobody_touches_who_may_do_more(stage: Stage) -> None:
    ada = await stage.person("ada")
    await stage.set_roles(stage.ids["abe"], "admin", "operator")
    abe, above = await stage.person("abe"), f"/admin/users/{stage.ids['abe']}"
    key = (await abe.send("POST", "/auth/api-keys", json={"name": "k"})).json()
    login = (await listed(abe, "/auth/sessions"))[0]["id"]
    for method, path, body in (
        ("POST", f"{above}/disable", {"reason": "x"}),
        ("POST", f"{above}/enable", None),
        ("POST", f"{above}/unlock", None),
        ("POST", f"{above}/sessions/revoke", None),
        ("PUT", f"{above}/roles/support", None),
        ("DELETE", f"{above}/roles/admin", None),
        ("DELETE", f"/admin/sessions/{login}", None),
        ("DELETE", f"/admin/api-keys/{key['id']}", None),
    ):
        assert_problem(await ada.send(method, path, json=body), 403, "forbidden")
    assert (await abe.send("GET", "/auth/me")).status_code == 200
    assert (await abe.send("POST", f"/admin/users/{ada.id}/disable", json={"reason": "x"})).status_code == 204
    for path in (f"POST {above}/disable", f"POST {above}/sessions/revoke", f"DELETE /admin/sessions/{login}"):
        method, _, own = path.partition(" ")  # nor oneself
        assert_problem(await abe.send(method, own, json={"reason": "x"}), 403, "forbidden")


@pytest.mark.asyncio(loop_scope="module")
async def test_logins_and_keys_are_listed_and_ended(stage: Stage) -> None:
    ada, one, two = await stage.person("ada"), await stage.person("bob"), await stage.person("bob")
    path = f"/admin/users/{one.id}"
    made = (await one.send("POST", "/auth/api-keys", json={"name": "k"})).json()
    logins = await listed(ada, f"{path}/sessions")
    assert len(logins) == 2
    assert "ip_hash" not in logins[0]
    assert (await ada.send("DELETE", f"/admin/sessions/{logins[0]['id']}")).status_code == 204
    assert [login["id"] for login in await listed(ada, f"{path}/sessions")] == [logins[1]["id"]]
    assert_problem(await ada.send("DELETE", f"/admin/sessions/{logins[0]['id']}"), 404, "not_found")
    assert_problem(await ada.send("DELETE", f"/admin/sessions/{uuid4()}"), 404, "not_found")
    assert (await ada.send("POST", f"{path}/sessions/revoke")).json() == {"ended": 1}
    assert [(await person.send("GET", "/auth/me")).status_code for person in (one, two)] == [401, 401]
    by_key = {"X-API-Key": made["key"]}
    assert (await one.http.get("/whoami", headers=by_key)).status_code == 200
    [key] = await listed(ada, f"{path}/api-keys")
    assert (key["id"], key.get("key")) == (made["id"], None)
    assert (await ada.send("DELETE", f"/admin/api-keys/{key['id']}")).status_code == 204
    assert (await one.http.get("/whoami", headers=by_key)).status_code == 401
    for key_id in (key["id"], uuid4()):
        assert_problem(await ada.send("DELETE", f"/admin/api-keys/{key_id}"), 404, "not_found")
    for what in ("sessions", "api-keys"):
        assert_problem(await ada.send("GET", f"/admin/users/{uuid4()}/{what}"), 404, "not_found")
    done = {entry.action for entry in await stage.entries() if entry.actor_id == str(ada.id)}
    assert done >= {"admin.sessions.viewed", "admin.api_keys.viewed", "session.revoked", "api_key.revoked"}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_trail_is_searched(stage: Stage) -> None:
    ada, olga, bob = await stage.person("ada"), await stage.person("olga"), str(stage.ids["bob"])
    stage.client.clock.advance(1)
    began = stage.client.clock.now().isoformat()
    await ada.start(bob)
    stage.client.clock.advance(60)
    await ada.send("POST", "/notes")
    await ada.stop()

    async def search(**query: Any) -> list[str]:
        answer = await olga.http.get("/admin/audit", params=query, headers=olga.bearer)
        assert answer.status_code == 200, answer.text
        return [entry["action"] for entry in answer.json()["items"]]

    started, stopped = "admin.impersonation.started", "admin.impersonation.stopped"
    assert await search(action="admin.impersonation.", subject_id=bob) == [stopped, started]
    assert await search(action=started, actor_id=str(ada.id)) == [started]
    assert await search(action="admin.impersonation", actor_id=str(ada.id)) == []
    assert await search(acting_as=bob) == ["note.written"]
    assert await search(subject_id=bob, action="note.written") == ["note.written"]
    assert await search(subject_id=bob, limit=3) == [stopped, "note.written", started]
    assert await search(target=f"user:{bob}", outcome="success", limit=2) == [stopped, started]
    assert await search(outcome="failure", actor_id=str(ada.id)) == []
    later = (stage.client.clock.now()).isoformat()
    assert await search(actor_id=str(ada.id), since=later) == [stopped, "note.written"]
    assert await search(actor_id=str(ada.id), since=began, until=later) == [started]
    assert await search(tenant_id="acme") == []
    assert await search(tenant_id="", action=started, subject_id=bob) == [started]
    query = {"action": started, "subject_id": bob}
    [entry] = (await olga.http.get("/admin/audit", params=query, headers=olga.bearer)).json()["items"]
    assert entry["after"]["reason"] == "case 789"
    assert "mac" not in entry
    there, found, query = {str(entry.id) for entry in await stage.entries()}, set(), {"limit": "100"}
    while True:
        page = (await olga.http.get("/admin/audit", params=query, headers=olga.bearer)).json()
        assert found.isdisjoint(one["id"] for one in page["items"])
        found |= {one["id"] for one in page["items"]}
        if page["next"] is None:
            break
        query["before"] = page["next"]
    assert found >= there
    for wrong in (
        {"since": "2026-01-01T00:00:00"},
        {"until": "0.5"},
        {"since": "0001-01-01T00:00:00+23:00"},
        {"outcome": "perhaps"},
        {"limit": 101},
        {"before": "x"},
    ):
        assert (await olga.http.get("/admin/audit", params=wrong, headers=olga.bearer)).status_code == 422


async def test_what_expired_is_on_record_for_who_searches_the_trail(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with staged(an_app(sqlite_db, clock), sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        await ada.start(stage.ids["bob"])
        clock.advance(900)
        olga = await stage.person("olga")
        await olga.send("GET", "/admin/audit")
        found = await listed(olga, "/admin/audit?action=admin.impersonation.stopped")
        assert [(one["actor_id"], one["after"]["reason"]) for one in found] == [(str(ada.id), "expired")]


USER, KEY, LOGIN = "/admin/users/{user_id}", "/admin/api-keys/{key_id}", "/admin/sessions/{session_id}"
CALLERS = ["nobody", "bob", "sue", "olga", "ada", "ada's key"]
ROWS = {
    "GET /admin/users": (401, 403, 200, 200, 200, 200),
    f"GET {USER}": (401, 403, 404, 404, 404, 404),
    f"GET {USER}/api-keys": (401, 403, 404, 404, 404, 404),
    f"GET {USER}/sessions": (401, 403, 403, 403, 404, 403),
    "GET /admin/roles": (401, 403, 200, 200, 200, 200),
    "GET /admin/audit": (401, 403, 403, 200, 403, 403),
    f"POST {USER}/disable": (401, 403, 403, 403, 404, 403),
    f"POST {USER}/enable": (401, 403, 403, 403, 404, 403),
    f"POST {USER}/unlock": (401, 403, 403, 403, 404, 403),
    f"POST {USER}/mfa/reset": (401, 403, 403, 403, 404, 403),
    f"POST {USER}/sessions/revoke": (401, 403, 403, 403, 404, 403),
    f"PUT {USER}/roles/{{role}}": (401, 403, 403, 403, 404, 403),
    f"DELETE {USER}/roles/{{role}}": (401, 403, 403, 403, 404, 403),
    f"DELETE {LOGIN}": (401, 403, 403, 403, 404, 403),
    f"DELETE {KEY}": (401, 403, 403, 403, 404, 403),
    "POST /admin/impersonate/start": (401, 403, 403, 403, 404, 403),
    "POST /admin/impersonate/stop": (401, 204, 204, 204, 204, 403),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_who_may_call_what(sqlite_stage: Stage) -> None:
    callers = {"nobody": {}, **{name: (await sqlite_stage.person(name)).bearer for name in CALLERS[1:5]}}
    scopes = ["user.read", "user.write"]
    ada = await sqlite_stage.person("ada")
    key = (await ada.send("POST", "/auth/api-keys", json={"name": "k", "scopes": scopes})).json()["key"]
    callers["ada's key"] = {"X-API-Key": key}
    anybody = str(uuid4())
    matrix = Matrix(
        callers=callers,
        rows=ROWS,
        values={"user_id": anybody, "key_id": anybody, "session_id": anybody, "role": "support"},
        requests={
            f"POST {USER}/disable": {"json": {"reason": "x"}},
            "POST /admin/impersonate/start": {"json": {"user_id": anybody, "reason": "x"}},
        },
        elsewhere=["/auth", "/notes", "/whoami"],
    )
    await check_matrix(sqlite_stage.client.app, matrix)


def test_a_router_for_admins_keeps_what_it_is_given() -> None:
    router = admin_router(
        prefix="/admin/reports", tags=["admin-reports"], dependencies=[RequirePermission("report.read")]
    )

    @router.get("/summary")
    async def summary() -> None: ...

    app = create_app(settings=Settings(app={"env": "test"}))
    app.include_router(router)
    [declared] = [route for route in route_policies(app) if route.path == "/admin/reports/summary"]
    assert {"role admin", "permission report.read"} < set(declared.policies)


async def test_second_factors_are_reset_where_there_are_any(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = an_app(sqlite_db, clock)
    async with staged(app, sqlite_db, clock) as stage:
        ada = await stage.person("ada")
        refused = await ada.send("POST", f"/admin/users/{stage.ids['bob']}/mfa/reset")
        assert_problem(refused, 404, "not_found")  # the app has none


async def test_an_admin_resets_the_second_factors_of_another(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = an_app(sqlite_db, clock)
    add_mfa(app)
    async with staged(app, sqlite_db, clock) as stage:
        ada, bob, path = await stage.person("ada"), await stage.person("bob"), "/admin/users/{}/mfa/reset"
        enrolled = (await bob.send("POST", "/auth/mfa/totp", json={})).json()
        code = TOTP(enrolled["secret"]).at(clock.now())
        confirmed = await bob.send("POST", f"/auth/mfa/totp/{enrolled['id']}/confirm", json={"code": code})
        assert confirmed.status_code == 200, confirmed.text
        await stage.set_roles(stage.ids["abe"], "admin", "operator")
        for user_id, status in ((ada.id, 403), (stage.ids["abe"], 403), (uuid4(), 404)):
            assert (await ada.send("POST", path.format(user_id))).status_code == status
        assert (await (await stage.person("sue")).send("POST", path.format(bob.id))).status_code == 403
        assert (await bob.send("GET", "/auth/mfa")).json()["factors"]
        assert (await ada.send("POST", path.format(bob.id))).json() == {"ended": 1}
        assert not (await bob.send("GET", "/auth/mfa")).json()["factors"]
        [entry] = await stage.entries("mfa.reset")
        assert (entry.actor_id, entry.target) == (str(ada.id), f"user:{bob.id}")
