"""The `/webhooks` routes with API keys: a key may do what its scopes and its owner's role permit together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest

from svc_infra.db import AsyncDatabase
from svc_infra.jobs.add import add_jobs
from svc_infra.testing import FakeClock
from svc_infra.webhooks.add import add_webhooks
from tests.security.conftest import Client, assert_problem, running
from tests.security.keys.conftest import made, organization, reader, with_keys

ENDPOINT = {"url": "http://127.0.0.1:9/hook", "topics": ["order.*"]}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def client(sqlite_db: AsyncDatabase, clock: FakeClock) -> AsyncIterator[Client]:
    app = with_keys(sqlite_db, clock)
    add_jobs(app)
    add_webhooks(app)
    async with running(app, clock) as client:
        yield client


async def statuses(client: Client, key: str) -> tuple[int, int, int]:
    """What a key is answered that lists endpoints, lists deliveries, and adds an endpoint."""
    headers = {"X-API-Key": key}
    answers = [await client.http.get(f"/webhooks/{what}", headers=headers) for what in ("endpoints", "deliveries")]
    added = await client.http.post("/webhooks/endpoints", json=ENDPOINT, headers=headers)
    return answers[0].status_code, answers[1].status_code, added.status_code


SCOPES: list[tuple[Iterable[str], tuple[int, int, int]]] = [
    ((), (403, 403, 403)),
    (("ticket.read",), (403, 403, 403)),
    (("webhook.read",), (200, 200, 403)),
    (("webhook.write",), (403, 403, 201)),
    (("webhook.read", "webhook.write"), (200, 200, 201)),
]


@pytest.mark.parametrize("service", [True, False])
async def test_a_key_manages_webhooks_within_its_scopes(
    service: bool, client: Client, sqlite_db: AsyncDatabase
) -> None:
    ana, ana_id = await reader(client, sqlite_db)
    acme = await organization(sqlite_db, ana_id)
    for scopes, expected in SCOPES:
        key = await made(ana, scopes=list(scopes), organization_id=str(acme), service=service)
        assert await statuses(client, key["key"]) == expected, scopes
        if expected[2] == 201:
            headers = {"X-API-Key": key["key"], "X-Tenant-Id": str(await organization(sqlite_db, ana_id))}
            elsewhere = await client.http.post("/webhooks/endpoints", json=ENDPOINT, headers=headers)
            assert_problem(elsewhere, 403, "tenant_refused")


async def test_a_key_loses_with_its_owners_role_what_it_may_do(client: Client, sqlite_db: AsyncDatabase) -> None:
    _, ana_id = await reader(client, sqlite_db)
    bob, bob_id = await reader(client, sqlite_db, "bob@example.com")
    acme = await organization(sqlite_db, ana_id, admin=bob_id)
    key = await made(bob, scopes=["webhook.read", "webhook.write"], organization_id=str(acme))
    assert await statuses(client, key["key"]) == (200, 200, 201)
    eve, eve_id = await reader(client, sqlite_db, "eve@example.com")
    other = await organization(sqlite_db, ana_id, member=eve_id)
    body = {"name": "x", "scopes": ["webhook.read"], "organization_id": str(other)}
    beyond = await client.http.post("/auth/api-keys", json=body, headers=eve.bearer)
    assert_problem(beyond, 422, "validation_error")
    headers = {**eve.bearer, "X-Tenant-Id": str(other)}
    assert_problem(await client.http.get("/webhooks/endpoints", headers=headers), 403, "forbidden")
