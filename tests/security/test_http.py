from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from sqlalchemy import func, select
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from svc_infra import get_current_user
from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError
from svc_infra.obs import context
from svc_infra.security.http import Identity, OptionalIdentity
from svc_infra.security.keyring import KeyRing
from svc_infra.security.models import RefreshToken, Session, User
from svc_infra.security.permissions import PERMISSION_REGISTRY, RequirePermission, RequireRoles, RequireUser
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import PASSWORD, Client, assert_problem, running, service
from tests.security.test_tokens import claims_at, forge


@pytest.fixture
async def client(db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    app = service(db, clock)
    add_routes(app)
    async with running(app, clock) as client:
        yield client


@pytest.fixture
async def sqlite_client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """For what does not depend on the engine."""
    app = service(sqlite_db, clock)
    add_routes(app)
    async with running(app, clock) as client:
        yield client


def add_routes(app: FastAPI) -> None:
    @app.get("/whoami")
    async def whoami(user: OptionalIdentity) -> dict[str, str]:
        return {"id": str(user.id) if user else "", "context": context.current().principal_id}

    for path, guard in {
        "/user": RequireUser(),
        "/admin": RequireRoles("admin"),
        "/both-roles": RequireRoles("admin", "auditor"),
        "/report": RequirePermission("report.read"),
        "/audit": RequirePermission("audit.read", "user.read"),
    }.items():

        @app.get(path, dependencies=[guard])
        async def guarded() -> str:
            return "welcome"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, user: Identity) -> None:
        await websocket.accept()
        await websocket.send_text(user.email)
        await websocket.close()


async def counted(db: AsyncDatabase) -> list[int]:
    async with db.session(read_only=True) as session:
        return [
            await session.scalar(select(func.count()).select_from(model)) or 0
            for model in (User, Session, RefreshToken)
        ]


async def give_roles(db: AsyncDatabase, email: str, *roles: str) -> None:
    async with db.session() as session:
        user = (await session.execute(select(User).where(User.email == email))).scalar_one()
        user.roles = list(roles)


async def test_register_log_in_refresh_and_log_out(client: Client) -> None:
    user_id = await client.register(" Ana@Example.com")
    ana = await client.log_in("ANA@example.com")
    assert {key: ana.tokens[key] for key in ("token_type", "expires_in")} == {"token_type": "bearer", "expires_in": 900}
    me = await ana.get("/auth/me")
    assert me.json() == {
        "id": str(user_id),
        "email": "ana@example.com",
        "roles": [],
        "is_verified": False,
        "full_name": None,
    }
    assert (await ana.get("/whoami")).json() == {"id": str(user_id), "context": str(user_id)}

    refreshed = await ana.refresh()
    assert refreshed.headers["cache-control"] == "no-store"
    again = Client(ana.app, ana.http, ana.clock, refreshed.json())
    assert again.tokens["refresh_token"] != ana.tokens["refresh_token"]
    assert (await again.get("/auth/me")).status_code == 200

    left = await client.http.post("/auth/logout", headers=again.bearer)
    assert (left.status_code, left.content) == (204, b"")
    for old in (ana, again):
        refusal = assert_problem(await old.get("/auth/me"), 401, "invalid_token")
        assert refusal["detail"] == "The session has ended: log in again."
        assert_problem(await old.refresh(), 401, "invalid_token")
    assert_problem(await client.http.post("/auth/logout", headers=again.bearer), 401, "invalid_token")


async def test_logging_out_ends_this_login_only(client: Client) -> None:
    await client.register()
    phone, laptop = await client.log_in(), await client.log_in()
    await client.http.post("/auth/logout", headers=phone.bearer)
    assert (await phone.get("/auth/me")).status_code == 401
    assert (await laptop.get("/auth/me")).status_code == 200


async def test_a_stolen_refresh_token_ends_the_login_although_the_request_fails(client: Client) -> None:
    await client.register()
    thief = await client.log_in()
    owner = Client(thief.app, thief.http, thief.clock, (await thief.refresh()).json())
    client.clock.advance(11)
    assert (await owner.refresh()).status_code == 200
    assert_problem(await thief.refresh(), 401, "invalid_token")
    assert_problem(await owner.get("/auth/me"), 401, "invalid_token")


async def test_fifty_clients_that_refresh_at_once_stay_logged_in(client: Client) -> None:
    await client.register()
    ana = await client.log_in()
    answers = await asyncio.gather(*(ana.refresh() for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1


async def test_an_expired_token_says_so(client: Client) -> None:
    await client.register()
    ana = await client.log_in()
    client.clock.advance(906)
    assert_problem(await ana.get("/auth/me"), 401, "token_expired")
    assert (await ana.refresh()).status_code == 200


WRONG_CREDENTIALS = {
    "none": "",
    "no token": "Bearer",
    "an empty token": "Bearer ",
    "another scheme": "Basic YTpi",
    "a token alone": "x.y.z",
    "two tokens": "Bearer a b",
    "nonsense": "Bearer nonsense",
    "too long": f"Bearer {'x' * 10_000}",
}


async def test_a_credential_of_another_form_is_refused_even_where_none_is_needed(sqlite_client: Client) -> None:
    for credential in WRONG_CREDENTIALS.values():
        for path in ("/whoami", "/auth/me"):
            refusal = await sqlite_client.http.get(path, headers={"Authorization": credential})
            assert_problem(refusal, 401, "invalid_token")
            assert refusal.headers["www-authenticate"] == "Bearer"
    await sqlite_client.register()
    ana = await sqlite_client.log_in()
    twice = [("Authorization", ana.bearer["Authorization"])] * 2
    assert_problem(await sqlite_client.http.get("/whoami", headers=twice), 401, "invalid_token")


async def test_without_a_credential_a_request_is_anonymous(sqlite_client: Client) -> None:
    assert (await sqlite_client.http.get("/whoami")).json() == {"id": "", "context": ""}
    for path in ("/auth/me", "/user", "/admin", "/report"):
        assert_problem(await sqlite_client.http.get(path), 401, "unauthorized")


async def test_the_scheme_is_written_in_any_case(sqlite_client: Client) -> None:
    await sqlite_client.register()
    token = (await sqlite_client.log_in()).tokens["access_token"]
    assert (await sqlite_client.http.get("/auth/me", headers={"Authorization": f"bEaReR {token}"})).status_code == 200


async def test_a_forged_token_is_refused(sqlite_client: Client) -> None:
    user_id = await sqlite_client.register()
    ana = await sqlite_client.log_in()
    head, body, signature = ana.tokens["access_token"].split(".")
    secret = wiring_of(sqlite_client.app).settings.secrets.require("AUTH_SECRET")
    real_key = KeyRing(secret).derived("access-token")[0]
    genuine = {"iss": "svc-infra", "aud": "svc-infra", "sub": str(user_id)}
    forged = {
        "cut": f"{head}.{body}.{signature[:-1]}",
        "unsigned": f"{head}.{body}.",
        "alg none": forge({"alg": "none", "typ": "at+jwt"}, claims_at(sqlite_client.clock, **genuine)),
        "another key": forge(head, claims_at(sqlite_client.clock, **genuine), key=b"k" * 32),
        "another audience": forge(head, claims_at(sqlite_client.clock, **{**genuine, "aud": "x"}), key=real_key),
        "a login that is not": forge(head, claims_at(sqlite_client.clock, **genuine), key=real_key),
    }
    for token in forged.values():
        refusal = await sqlite_client.http.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert_problem(refusal, 401, "invalid_token")


async def test_wrong_credentials_get_one_answer(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    before = await counted(db)
    answers = [
        await client.http.post("/auth/login", json={"email": email, "password": password})
        for email, password in [("ana@example.com", "wrong password"), ("nobody@example.com", PASSWORD)]
    ]
    known, unknown = (assert_problem(answer, 401, "invalid_credentials") for answer in answers)
    own = {"request_id", "trace_id"}
    assert {k: v for k, v in known.items() if k not in own} == {k: v for k, v in unknown.items() if k not in own}
    assert await counted(db) == before


GOOD = {"email": "new@example.com", "password": PASSWORD}
WRONG_BODIES: list[Any] = [
    {},
    [],
    "text",
    {"email": GOOD["email"]},
    {**GOOD, "roles": ["admin"]},
    {**GOOD, "is_verified": True},
    {**GOOD, "email": "no address"},
    {**GOOD, "email": "x" * 300 + "@example.com"},
    {**GOOD, "email": "new\x00@example.com"},
    {**GOOD, "email": ["new@example.com"]},
    {**GOOD, "password": ""},
    {**GOOD, "password": 1234567890},
    {**GOOD, "password": None},
    {**GOOD, "password": "x" * 129},
    {**GOOD, "password": "x" * 1_000_000},
]


async def test_a_body_of_another_form_is_refused_and_changes_nothing(client: Client, db: AsyncDatabase) -> None:
    for path in ("/auth/register", "/auth/login"):
        for body in WRONG_BODIES:
            answer = await client.http.post(path, json=body)
            problem = assert_problem(answer, 422, "validation_error")
            assert PASSWORD not in answer.text
            assert problem["errors"]
        as_json = {"content-type": "application/json"}
        half_a_pair = b'{"email": "new@example.com", "password": "\\ud800 is no text"}'
        answer = await client.http.post(path, content=half_a_pair, headers=as_json)
        assert_problem(answer, 422, "validation_error")
        assert_problem(await client.http.post(path, content=b"{", headers=as_json), 400, "bad_request")
    for password in ("short", "new@example.com"):
        answer = await client.http.post("/auth/register", json={**GOOD, "password": password})
        assert assert_problem(answer, 422, "validation_error")["errors"][0]["pointer"] == "#/password"
    for body in ({}, {"refresh_token": ""}, {"refresh_token": "x" * 257}, {"refresh_token": "x", "more": 1}):
        assert_problem(await client.http.post("/auth/refresh", json=body), 422, "validation_error")
    assert_problem(await client.http.post("/auth/refresh", json={"refresh_token": "x"}), 401, "invalid_token")
    assert await counted(db) == [0, 0, 0]


async def test_an_address_can_be_registered_once(client: Client, db: AsyncDatabase) -> None:
    await client.register()
    again = {"email": "ANA@example.com", "password": "another password"}
    assert (await client.http.post("/auth/register", json=again)).status_code == 201  # see test_enumeration
    assert (await counted(db))[0] == 1
    assert_problem(await client.http.post("/auth/login", json=again), 401, "invalid_credentials")
    assert (await client.log_in()).tokens


async def test_ten_registrations_of_one_address_at_once_make_one_account(client: Client, db: AsyncDatabase) -> None:
    answers = await asyncio.gather(*(client.http.post("/auth/register", json=GOOD) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 10
    assert (await counted(db))[0] == 1


async def test_roles_and_permissions_open_what_they_should_and_nothing_else(
    sqlite_client: Client, sqlite_db: AsyncDatabase
) -> None:
    await sqlite_client.register()
    ana = await sqlite_client.log_in()
    opened = {
        (): ["/user"],
        ("admin",): ["/user", "/admin"],
        ("auditor",): ["/user", "/audit"],
        ("admin", "auditor"): ["/user", "/admin", "/both-roles", "/audit"],
        ("reader",): ["/user", "/report"],
        ("unknown",): ["/user"],
    }
    for roles, welcome in opened.items():
        await give_roles(sqlite_db, "ana@example.com", *roles)
        for path in ("/user", "/admin", "/both-roles", "/report", "/audit"):
            answer = await ana.get(path)
            if path in welcome:
                assert answer.json() == "welcome"
            else:
                assert_problem(answer, 403, "forbidden")
    refusal = assert_problem(await ana.get("/audit"), 403, "forbidden")
    assert refusal["detail"] == "This needs the permission audit.read, user.read."


def test_the_registry_is_what_the_documentation_says_and_cannot_be_changed() -> None:
    admin = "user.read user.write billing.read billing.write admin.impersonate"
    assert dict(PERMISSION_REGISTRY) == {
        "admin": {*admin.split(), "security.session.list", "security.session.revoke"},
        "support": {"user.read", "billing.read"},
        "auditor": {"user.read", "billing.read", "audit.read"},
    }
    with pytest.raises(TypeError):
        PERMISSION_REGISTRY["admin"] = frozenset()  # type: ignore[index]


@pytest.mark.parametrize(
    "guard",
    [RequireRoles, RequirePermission, lambda: RequirePermission("admin"), lambda: RequirePermission("User.read")],
)
def test_a_guard_that_requires_nothing_or_nothing_that_exists_is_refused(guard: Any) -> None:
    with pytest.raises(ConfigurationError):
        guard()


async def test_a_plain_request_is_served_while_logins_are_being_verified(
    sqlite_db: AsyncDatabase, clock: FakeClock
) -> None:
    app = service(sqlite_db, clock, auth={"hash_concurrency": 1, "lockout_threshold": 100})
    add_routes(app)
    async with running(app, clock) as client:
        await client.register()
        wrong = {"email": "ana@example.com", "password": "wrong password"}
        logins = [asyncio.ensure_future(client.http.post("/auth/login", json=wrong)) for _ in range(20)]
        served = 0
        while not all(login.done() for login in logins):
            assert (await client.http.get("/whoami")).status_code == 200
            served += 1
            await asyncio.sleep(0)  # this transport answers without ever waiting
        assert served >= len(logins)  # verified on the loop, a login would let at most one request through
        assert {login.result().status_code for login in logins} == {401}


async def test_logins_that_do_not_fit_get_429_and_when_to_come_back(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock, auth={"hash_concurrency": 1})
    async with running(app, clock) as client:
        await client.register()
        right = {"email": "ana@example.com", "password": PASSWORD}
        answers = await asyncio.gather(*(client.http.post("/auth/login", json=right) for _ in range(90)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 90
        for answer in refused:
            assert_problem(answer, 429, "rate_limited")
            assert int(answer.headers["retry-after"]) >= 1


def test_a_websocket_is_opened_with_a_token_and_refused_without(clock: FakeClock, sqlite_url: str) -> None:
    app = service(sqlite_url, clock)
    add_routes(app)
    with TestClient(app) as client:
        client.post("/auth/register", json=GOOD)
        token = client.post("/auth/login", json=GOOD).json()["access_token"]
        with client.websocket_connect("/socket", headers={"Authorization": f"Bearer {token}"}) as socket:
            assert socket.receive_text() == "new@example.com"
        for headers in ({}, {"Authorization": "Bearer nonsense"}):
            with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket", headers=headers):
                pass


def test_openapi_tells_how_to_authenticate(clock: FakeClock) -> None:
    app = service("sqlite://", clock)
    schema = app.openapi()
    assert schema["components"]["securitySchemes"] == {
        "Bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    secured = {path for path, methods in schema["paths"].items() for method in methods.values() if "security" in method}
    own = {"me", "logout", "logout-all", "password", "email", "disable", "reauthenticate"}
    assert secured == {f"/auth/{path}" for path in own} | {
        f"/auth/sessions{path}" for path in ("", "/revoke-others", "/{session_id}")
    }
    assert schema["components"]["schemas"]["NewCredentials"]["properties"]["password"]["writeOnly"] is True


def test_the_front_door_has_the_same_dependency() -> None:
    from svc_infra.security import http

    assert get_current_user is http.get_current_user
