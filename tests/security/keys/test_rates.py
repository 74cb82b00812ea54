"""How often a key may be used: what its routes say, or a rate of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.http import rate_limit
from svc_infra.security.audit import AuditEntry
from svc_infra.security.keys import ApiKey, ApiKeys, KeyRequest
from svc_infra.security.keys.add import add_api_keys
from svc_infra.security.principal import Principal
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.security.conftest import Client, assert_problem, running, service
from tests.security.keys.conftest import call, made, reader


@pytest.fixture
async def here(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    """Two routes that count keys, three calls a minute each."""
    app = service(sqlite_db, clock)
    add_api_keys(app, max_rate="10/minute")
    app.add_middleware(RateLimitMiddleware, rate=())

    for path, limit in {
        "/one": rate_limit("3/minute", per="api_key"),
        "/two": rate_limit("3/minute", per="api_key"),
        "/own": rate_limit("3/minute", per="api_key", override=lambda _: "1/minute"),
        "/user": rate_limit("3/minute", per="user"),
    }.items():

        @app.get(path, dependencies=[limit])
        async def limited() -> None: ...

    async with running(app, clock) as client:
        yield client


async def served(client: Client, key: str, *paths: str) -> list[int]:
    return [(await call(client, key, path)).status_code for path in paths]


async def test_a_key_without_a_rate_has_that_of_each_route(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana)
    assert key["rate"] is None
    assert await served(here, key["key"], *["/one"] * 4) == [200, 200, 200, 429]
    assert await served(here, key["key"], "/two") == [200]


async def test_a_key_with_a_rate_has_that_instead_over_all_routes_that_count_keys(
    here: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, _ = await reader(here, sqlite_db)
    small, large = await made(ana, rate="2/minute"), await made(ana, rate="5/minute")
    assert (small["rate"], large["rate"]) == ("2/minute", "5/minute")
    assert await served(here, small["key"], "/one", "/two", "/one", "/two") == [200, 200, 429, 429]
    assert await served(here, large["key"], *["/one"] * 5, "/two") == [200] * 5 + [429]
    assert await served(here, small["key"], "/user") == [200], "a limit of users is none of keys"
    refused = await call(here, small["key"], "/two")
    assert '"api_key-2-60"' in refused.headers["ratelimit-policy"]


async def test_what_a_route_overrides_comes_before_what_a_key_has(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, rate="5/minute")
    assert await served(here, key["key"], "/own", "/own", "/one") == [200, 429, 200]


async def test_a_rotation_keeps_the_rate_or_gives_another(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, rate="2/minute")
    for body, rate in (({}, "2/minute"), ({"rate": "1/minute"}, "1/minute")):
        answer = await here.http.post(f"/auth/api-keys/{key['id']}/rotate", json=body, headers=ana.bearer)
        key = answer.json()
        assert key["rate"] == rate
    assert await served(here, key["key"], "/one", "/one") == [200, 429]
    async with sqlite_db.session(read_only=True) as session:
        changes = await session.scalars(select(AuditEntry.after).where(AuditEntry.action.startswith("api_key.")))
        assert [('"rate":"2/minute"' in str(one), '"rate":"1/minute"' in str(one)) for one in changes] == [
            (True, False), (True, False), (False, True),
        ]  # fmt: skip


LARGER = ["11/minute", "1000/hour", "10/second", "7/30 seconds"]


@pytest.mark.parametrize("rate", [*LARGER, "many", "", "0/minute", "1/minute" + " " * 100])
async def test_nobody_gives_a_key_a_larger_rate_than_the_app_allows(
    rate: str, here: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, rate="10/minute")
    for path in ("/auth/api-keys", f"/auth/api-keys/{key['id']}/rotate"):
        body: dict[str, Any] = {"rate": rate} | ({"name": "x"} if path == "/auth/api-keys" else {})
        assert_problem(await here.http.post(path, json=body, headers=ana.bearer), 422, "validation_error")
    listed = (await ana.get("/auth/api-keys")).json()
    assert [(one["id"], one["replaced_at"]) for one in listed] == [(key["id"], None)]


async def test_the_app_itself_gives_any_rate_but_no_nonsense(here: Client, sqlite_db: AsyncDatabase) -> None:
    _, ana_id = await reader(here, sqlite_db)
    keys, maker = wiring_of(here.app).get(ApiKeys), Principal(id=ana_id, email="ana@example.com")
    async with sqlite_db.session() as session:
        key = await keys.create(session, maker, KeyRequest(name="partner", rate="100/minute"))
    assert await served(here, key.key, *["/one"] * 20) == [200] * 20
    with pytest.raises(ValidationError):
        async with sqlite_db.session() as session:
            await keys.create(session, maker, KeyRequest(name="partner", rate="often"))


async def test_without_a_largest_rate_only_the_app_gives_one(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    app = service(sqlite_db, clock)
    add_api_keys(app)
    async with running(app, clock) as client:
        ana, _ = await reader(client, sqlite_db)
        body = {"name": "x", "rate": "1/minute"}
        assert_problem(await client.http.post("/auth/api-keys", json=body, headers=ana.bearer), 403, "forbidden")


async def test_a_rate_that_cannot_be_read_lets_nobody_through(here: Client, sqlite_db: AsyncDatabase) -> None:
    ana, _ = await reader(here, sqlite_db)
    key = await made(ana, rate="2/minute")
    async with sqlite_db.session() as session:
        await session.execute(update(ApiKey).values(rate="spoiled"))
    assert await served(here, key["key"], "/one") == [500]


def test_a_largest_rate_that_is_none_is_refused_at_once(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError):
        add_api_keys(service(sqlite_db, clock), max_rate="much")
