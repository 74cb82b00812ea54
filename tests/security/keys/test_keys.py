"""API keys over HTTP: who a key stands for, and what ends it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import select

from svc_infra.db import AsyncDatabase
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.http import rate_limit
from svc_infra.security import Accounts
from svc_infra.security.audit import AuditEntry
from svc_infra.security.keys import ApiKey, KeyForm, KeyUses
from svc_infra.security.models import User
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service
from tests.security.keys.conftest import call, made, organization, reader, with_keys
from tests.security.test_http import give_roles
from tests.security.test_token_cache import reads


async def stored(db: AsyncDatabase, key_id: str) -> ApiKey:
    async with db.session(read_only=True) as session:
        return await session.get_one(ApiKey, UUID(key_id))


async def test_a_key_acts_as_its_user_within_its_scopes(client: Client, db: AsyncDatabase) -> None:
    ana, ana_id = await reader(client, db)
    key = await made(ana, scopes=["report.read"])
    who = (await call(client, key["key"])).json()
    assert who == {
        "id": str(ana_id), "scopes": ["report.read"], "tenant": None, "service": False,
        "context": [str(ana_id), key["id"]],
    }  # fmt: skip
    bearer = await client.http.get("/report", headers={"Authorization": f"Bearer {key['key']}"})
    assert bearer.status_code == 200
    bare = await made(ana)
    assert_problem(await call(client, bare["key"], "/report"), 403, "forbidden")
    assert (await call(client, bare["key"], "/identity")).status_code == 200
    for one in (key, bare):  # roles are no scopes
        assert_problem(await call(client, one["key"], "/reader"), 403, "forbidden")


async def test_only_a_hash_is_stored_and_the_key_is_shown_once(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, scopes=["report.read"])
    row = await stored(sqlite_db, key["id"])
    assert key["key"] not in repr(vars(row))
    assert row.hint == key["key"][-4:]
    listed = (await ana.get("/auth/api-keys")).json()
    assert [one["id"] for one in listed] == [key["id"]]
    assert key["key"] not in str(listed)
    assert "key" not in listed[0]


async def test_only_a_fresh_login_makes_and_rotates_keys_and_any_ends_them(
    here: Client, sqlite_db: AsyncDatabase
) -> None:
    """A token that was stolen is good for minutes: what it could make would be good for years."""
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana)
    here.clock.advance(800)
    ana.tokens = (await ana.refresh()).json()
    here.clock.advance(101)
    for path in ("/auth/api-keys", f"/auth/api-keys/{key['id']}/rotate"):
        stale = await here.http.post(path, json={"name": "ci"} if path.endswith("keys") else {}, headers=ana.bearer)
        assert_problem(stale, 401, "insufficient_user_authentication")
    ended = await here.http.delete(f"/auth/api-keys/{key['id']}", headers=ana.bearer)
    assert ended.status_code == 204
    proven = await here.http.post("/auth/reauthenticate", json={"password": PASSWORD}, headers=ana.bearer)
    ana.tokens |= proven.json()
    await made(ana)


async def test_nobody_gives_a_key_more_than_they_may_do(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    for scopes in (["report.write"], ["report.read", "tenant.any"], ["organization.read"], ["no such"]):
        answer = await here.http.post("/auth/api-keys", json={"name": "x", "scopes": scopes}, headers=ana.bearer)
        assert_problem(answer, 422, "validation_error")
    assert (await ana.get("/auth/api-keys")).json() == []


async def test_a_key_loses_at_once_what_its_owner_loses(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await reader(client, db)
    key = await made(ana, scopes=["report.read"])
    await give_roles(db, "ana@example.com")
    assert_problem(await call(client, key["key"], "/report"), 403, "forbidden")
    assert (await call(client, key["key"])).json()["scopes"] == []
    await give_roles(db, "ana@example.com", "reader")
    assert (await call(client, key["key"], "/report")).status_code == 200


@pytest.mark.parametrize("end", ["disable", "delete"])
async def test_a_key_ends_with_its_owner(client: Client, db: AsyncDatabase, end: str) -> None:
    ana, ana_id = await reader(client, db)
    key = await made(ana)
    accounts = wiring_of(client.app).get(Accounts)
    async with db.session() as session:
        await (
            accounts.disable(session, ana_id, reason="left") if end == "disable" else accounts.delete(session, ana_id)
        )
    assert_problem(await call(client, key["key"]), 401, "invalid_token")


async def test_a_key_expires(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, expires_in_seconds=60)
    here.clock.advance(59)
    assert (await call(here, key["key"])).status_code == 200
    here.clock.advance(1)
    assert_problem(await call(here, key["key"]), 401, "invalid_token")


async def test_a_revoked_key_is_refused_and_only_its_owner_revokes_it(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await reader(client, db)
    eve, _ = await reader(client, db, "eve@example.com")
    key = await made(ana)
    path = f"/auth/api-keys/{key['id']}"
    for method, where in (("DELETE", path), ("POST", f"{path}/rotate")):
        assert_problem(await client.http.request(method, where, headers=eve.bearer), 404, "not_found")
    assert (await call(client, key["key"])).status_code == 200
    assert (await client.http.delete(path, headers=ana.bearer)).status_code == 204
    assert (await client.http.delete(path, headers=ana.bearer)).status_code == 204
    assert_problem(await call(client, key["key"]), 401, "invalid_token")
    assert (await ana.get("/auth/api-keys")).json() == []


async def test_no_key_manages_keys_or_changes_its_account(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, scopes=["report.read"])
    with_key = {"X-API-Key": key["key"]}
    for method, path in [
        ("GET", "/auth/api-keys"), ("POST", "/auth/api-keys"), ("POST", f"/auth/api-keys/{key['id']}/rotate"),
        ("DELETE", f"/auth/api-keys/{key['id']}"), ("POST", "/auth/password"), ("POST", "/auth/logout-all"),
        ("GET", "/auth/sessions"), ("PATCH", "/auth/me"), ("DELETE", "/auth/me"), ("POST", "/auth/disable"),
    ]:  # fmt: skip
        answer = await here.http.request(method, path, headers=with_key, json={})
        assert_problem(answer, 403, "forbidden")
    assert (await call(here, key["key"], "/auth/me")).json()["email"] == "ana@example.com"


async def test_rotation_overlaps_and_only_one_of_many_rotations_succeeds(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await reader(client, db)
    old = await made(ana, scopes=["report.read"])
    path = f"/auth/api-keys/{old['id']}/rotate"

    async def rotate() -> httpx2.Response:
        return await client.http.post(path, json={"overlap_seconds": 600}, headers=ana.bearer)

    answers = await asyncio.gather(*(rotate() for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    new = next(answer.json() for answer in answers if answer.status_code == 201)
    assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
    for key in (old, new):
        assert (await call(client, key["key"], "/report")).status_code == 200
    client.clock.advance(600)
    assert_problem(await call(client, old["key"]), 401, "invalid_token")
    assert (await call(client, new["key"])).status_code == 200


async def test_who_has_a_key_may_always_end_it(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana)
    for _ in range(2):
        assert (await here.http.post("/auth/api-keys/leaked", json={"key": key["key"]})).status_code == 204
    assert_problem(await call(here, key["key"]), 401, "invalid_token")
    for other in (KeyForm().draw(uuid4()), "no key"):
        assert (await here.http.post("/auth/api-keys/leaked", json={"key": other})).status_code == 204
    async with sqlite_db.session(read_only=True) as session:
        entries = list(await session.scalars(select(AuditEntry).where(AuditEntry.action == "api_key.revoked")))
    assert [(entry.target, entry.after) for entry in entries] == [(f"api_key:{key['id']}", '{"reason":"leaked"}')]


WRONG = ["", "x", "svc_", "a" * 5000, "svc_" + "0" * 40, "\x7f", "eyJhbGciOiJub25lIn0"]


async def test_a_wrong_key_is_refused_without_a_read(here: Client) -> None:
    key = KeyForm().draw(uuid4())
    with reads() as seen:
        for wrong in [*WRONG, key[:-1], key + "0", key.upper()]:
            assert_problem(await call(here, wrong), 401, "invalid_token")
        for wrong in ("x", key[:-1]):
            answer = await here.http.get("/whoami", headers={"Authorization": f"Bearer {wrong}"})
            assert_problem(answer, 401, "invalid_token")
    assert seen == []
    with reads() as seen:  # one that nobody has
        assert_problem(await call(here, key), 401, "invalid_token")
    assert len(seen) == 1


async def test_two_credentials_in_one_request_are_refused(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = (await made(ana))["key"]
    for headers in ([*ana.bearer.items(), ("X-API-Key", key)], [("X-API-Key", key), ("X-API-Key", key)]):
        assert_problem(await here.http.get("/whoami", headers=headers), 401, "invalid_token")


async def test_a_key_costs_one_indexed_read(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await reader(client, db)
    key = (await made(ana, scopes=["report.read"]))["key"]
    with reads() as seen:
        assert (await call(client, key, "/report")).status_code == 200
    assert len(seen) == 1
    if db.engine.dialect.name == "sqlite":
        async with db.session(read_only=True) as session:
            explained = f"EXPLAIN QUERY PLAN {seen[0]}"
            rows = await (await session.connection()).exec_driver_sql(explained, ("x" * 64, "2030-01-01"))
            plan = [str(row) for row in rows.all()]
        assert plan
        assert not [line for line in plan if "SCAN" in line], plan


async def test_with_the_token_cache_the_second_call_reads_nothing_and_changes_are_seen_at_once(
    cached: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, ana_id = await reader(cached, sqlite_db)
    key = await made(ana, scopes=["report.read"])

    async def status() -> int:
        await call(cached, key["key"], "/report")
        with reads() as seen:
            answer = await call(cached, key["key"], "/report")
        assert seen == [] or answer.status_code == 401  # who is refused is not remembered
        return answer.status_code

    assert await status() == 200
    await give_roles(sqlite_db, "ana@example.com")
    assert await status() == 403
    await give_roles(sqlite_db, "ana@example.com", "reader")
    assert await status() == 200
    async with sqlite_db.session() as session:
        (await session.get_one(User, ana_id)).is_active = False
    assert await status() == 401
    async with sqlite_db.session() as session:
        (await session.get_one(User, ana_id)).is_active = True
    assert await status() == 200
    await cached.http.delete(f"/auth/api-keys/{key['id']}", headers=ana.bearer)
    ana = await cached.log_in()
    await cached.http.delete(f"/auth/api-keys/{key['id']}", headers=ana.bearer)
    assert await status() == 401


async def test_nobody_gets_by_rotation_what_they_may_not_do(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, ana_id = await reader(here, sqlite_db)
    eve, eve_id = await reader(here, sqlite_db, "eve@example.com")
    acme = await organization(sqlite_db, ana_id, admin=eve_id)
    wanted: dict[str, Any] = {"scopes": ["organization.delete"], "organization_id": str(acme), "service": True}
    key = await made(ana, **wanted)
    answer = await here.http.post(f"/auth/api-keys/{key['id']}/rotate", headers=eve.bearer)
    assert_problem(answer, 403, "forbidden")


async def test_a_use_is_written_behind_the_request_and_at_most_once_a_minute(client: Client, db: AsyncDatabase) -> None:
    ana, _ = await reader(client, db)
    key, uses = await made(ana), wiring_of(client.app).get(KeyUses)

    async def used_at() -> Any:
        await uses.flush()
        return (await stored(db, key["id"])).last_used_at

    assert await used_at() is None
    await call(client, key["key"])
    assert (await stored(db, key["id"])).last_used_at is None
    first = client.clock.now()
    assert await used_at() == first
    client.clock.advance(59)
    await call(client, key["key"])
    assert await used_at() == first
    client.clock.advance(1)
    await call(client, key["key"])
    assert await used_at() == client.clock.now()


async def test_a_key_outlives_a_change_of_the_secret_when_it_is_used_meanwhile(
    sqlite_db: AsyncDatabase, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "the first secret of more than 32 bytes, yes", "the second secret of more than 32 bytes, yes"
    monkeypatch.setenv("AUTH_SECRET", first)
    async with running(with_keys(sqlite_db, clock), clock) as client:
        ana, _ = await reader(client, sqlite_db)
        used, unused = await made(ana), await made(ana)
    monkeypatch.setenv("AUTH_SECRET", second)
    monkeypatch.setenv("AUTH_SECRET_PREVIOUS", first)
    async with running(with_keys(sqlite_db, clock), clock) as client:
        assert (await call(client, used["key"])).status_code == 200
    monkeypatch.delenv("AUTH_SECRET_PREVIOUS")
    async with running(with_keys(sqlite_db, clock), clock) as client:
        assert (await call(client, used["key"])).status_code == 200
        assert_problem(await call(client, unused["key"]), 401, "invalid_token")


async def test_each_key_has_a_rate_of_its_own(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = with_keys(sqlite_db, clock)
    app.add_middleware(RateLimitMiddleware, rate=())

    @app.get("/limited", dependencies=[rate_limit("2/minute", per="api_key")])
    async def limited() -> None: ...

    async with running(app, clock) as client:
        ana, _ = await reader(client, sqlite_db)
        one, other = (await made(ana))["key"], (await made(ana))["key"]
        assert [(await call(client, one, "/limited")).status_code for _ in range(3)] == [200, 200, 429]
        assert (await call(client, other, "/limited")).status_code == 200


async def test_an_app_that_takes_no_keys_says_so(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)
    async with running(app, clock) as client:
        key = KeyForm().draw(uuid4())
        answer = await client.http.get("/auth/me", headers={"Authorization": f"Bearer {key}"})
        assert "takes no API keys" in assert_problem(answer, 401, "invalid_token")["detail"]
        answer = await client.http.get("/auth/me", headers={"X-API-Key": key})  # a header that means nothing here
        assert_problem(answer, 401, "unauthorized")


async def test_the_document_shows_both_ways_to_send_a_credential(here: Client) -> None:
    document = (await here.http.get("/openapi.json")).json()
    assert {"Bearer", "ApiKey"} <= document["components"]["securitySchemes"].keys()
    assert document["paths"]["/identity"]["get"]["security"] == [{"Bearer": []}, {"ApiKey": []}]


async def test_too_many_keys_are_refused(
    here: Client, sqlite_db: AsyncDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.security.keys.keys.MAX_KEYS", 2)
    ana, _ = await reader(here, sqlite_db)
    keys = [await made(ana), await made(ana)]
    answer = await here.http.post("/auth/api-keys", json={"name": "x"}, headers=ana.bearer)
    assert_problem(answer, 409, "conflict")
    await here.http.delete(f"/auth/api-keys/{keys[0]['id']}", headers=ana.bearer)
    await made(ana)
