"""What the dependencies refuse, for callers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI, params
from starlette.requests import HTTPConnection

from svc_infra.errors import ConfigurationError
from svc_infra.security import Principal
from svc_infra.security import http as security_http
from svc_infra.security.http import Identity, LoggedIn
from svc_infra.security.permissions import (
    RequireABAC,
    RequireAnyPermission,
    RequireAnyScope,
    RequirePermission,
    RequireRoles,
    RequireScopes,
    RequireService,
    RequireUser,
    owns_resource,
)
from tests.security.access.test_routes import an_app

ANA = uuid4()
ALL = frozenset({"report.read", "report.write"})
CALLERS: dict[str, Principal | None] = {
    "nobody": None,
    "login": Principal(
        id=ANA, email="a@b.c", roles=frozenset({"reader"}), permissions=frozenset({"report.read"}), session_id=uuid4()
    ),
    "admin": Principal(id=uuid4(), email="a@b.c", roles=frozenset({"reader", "admin"}), permissions=ALL),
    "key": Principal(id=ANA, email="a@b.c", permissions=ALL, scopes=frozenset({"report.read"}), via="api_key"),
    "bare key": Principal(id=ANA, email="a@b.c", permissions=ALL, scopes=frozenset(), via="api_key"),
    "service": Principal(id=uuid4(), email="", scopes=ALL, via="api_key", is_service=True, tenant_id=str(uuid4())),
}


@dataclass
class Note:
    owner_id: UUID | None


async def note(which: str) -> Note | None:
    return {"mine": Note(ANA), "hers": Note(uuid4()), "nobodys": Note(None)}.get(which)


async def statuses(dependency: params.Depends, path: str = "/", **query: str) -> dict[str, int]:
    app = an_app()

    @app.get("/", dependencies=[dependency])
    async def guarded() -> None: ...

    return {name: await status(app, caller, path, **query) for name, caller in CALLERS.items()}


async def status(app: FastAPI, caller: Principal | None, path: str = "/", **query: str) -> int:
    async def identified(connection: HTTPConnection) -> Principal | None:
        return caller

    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://test") as http:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(security_http, "identify_user", identified)
            return (await http.get(path, params=query)).status_code


async def yes() -> bool:
    return True


async def nearly() -> int:
    return 1


async def nothing() -> None:
    return None


ROWS: list[tuple[Callable[[], params.Depends], str]] = [
    # nobody, login, admin, key, bare key, service
    (RequireUser, "401 200 200 200 200 403"),
    (RequireService, "401 403 403 403 403 200"),
    (lambda: RequireRoles("reader"), "401 200 200 403 403 403"),
    (lambda: RequireRoles("reader", "admin"), "401 403 200 403 403 403"),
    (lambda: RequirePermission("report.read"), "401 200 200 200 403 403"),
    (lambda: RequirePermission("report.read", "report.write"), "401 403 200 403 403 403"),
    (lambda: RequireAnyPermission("report.read", "report.write"), "401 200 200 200 403 403"),
    (lambda: RequireScopes("report.read"), "401 200 200 200 403 200"),
    (lambda: RequireScopes("report.read", "report.write"), "401 200 200 403 403 200"),
    (lambda: RequireAnyScope("report.write", "report.read"), "401 200 200 200 403 200"),
    (lambda: RequireAnyScope("report.write"), "401 200 200 403 403 200"),
    (lambda: RequireABAC(yes), "401 200 200 200 200 200"),
    (lambda: RequireABAC(nearly), "401 403 403 403 403 403"),
    (lambda: RequireABAC(nothing), "401 403 403 403 403 403"),
]


@pytest.mark.parametrize(("guard", "expected"), ROWS)
async def test_the_dependency_lets_in_whom_it_says(guard: Callable[[], params.Depends], expected: str) -> None:
    given = await statuses(guard())
    assert given == dict(zip(CALLERS, map(int, expected.split()), strict=True))


async def test_only_the_owner_passes_and_what_does_not_exist_is_owned_by_nobody() -> None:
    guard = RequireABAC(owns_resource(note))
    mine = await statuses(guard, which="mine")
    assert mine == {"nobody": 401, "login": 200, "admin": 403, "key": 200, "bare key": 200, "service": 403}
    for which in ("hers", "nobodys", "missing"):
        assert set((await statuses(guard, which=which)).values()) == {401, 403}
    misspelled = await statuses(RequireABAC(owns_resource(note, "owner")), which="mine")
    assert set(misspelled.values()) == {401, 500}


async def test_a_login_is_not_a_key_and_a_service_is_not_a_user() -> None:
    app = an_app()

    @app.get("/user")
    async def user(caller: Identity) -> None: ...

    @app.get("/login")
    async def login(caller: LoggedIn) -> None: ...

    given = {name: (await status(app, one, "/user"), await status(app, one, "/login")) for name, one in CALLERS.items()}
    assert given == {
        "nobody": (401, 401),
        "login": (200, 200),
        "admin": (200, 403),  # verified, but by no login
        "key": (200, 403),
        "bare key": (200, 403),
        "service": (403, 403),
    }


NAMING = [RequirePermission, RequireAnyPermission, RequireScopes, RequireAnyScope]


@pytest.mark.parametrize("guard", [RequireRoles, *NAMING])
def test_a_guard_that_requires_nothing_is_refused(guard: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="name one"):
        guard()


@pytest.mark.parametrize("guard", NAMING)
def test_a_guard_with_a_misspelled_name_is_refused(guard: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="is no permission"):
        guard("report.read", "Report")
