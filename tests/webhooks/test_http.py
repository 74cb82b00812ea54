"""The `/webhooks` routes of a whole app, with its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db import AsyncDatabase
from svc_infra.db.add import add_db
from svc_infra.db.http import DbSession
from svc_infra.errors import ConfigurationError, MissingSecretError
from svc_infra.jobs.add import add_jobs
from svc_infra.security.add import add_auth_users
from svc_infra.security.organizations import Organizations
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import TenantId
from svc_infra.testing import WebhookReceiver
from svc_infra.webhooks import WebhookRetry, WebhookSignature
from svc_infra.webhooks.add import add_webhooks
from svc_infra.webhooks.http import WebhooksDep
from svc_infra.wiring import wiring_of

PASSWORD = "correct horse battery"


@dataclass
class Person:
    """Someone with an account, and perhaps an organisation to act for."""

    client: httpx2.AsyncClient
    id: str
    headers: dict[str, str]

    async def ask(self, method: str, path: str, expected: int, **request: Any) -> Any:
        """Ask as this person and insist on the status."""
        response = await self.client.request(method, path, headers=self.headers, **request)
        assert response.status_code == expected, response.text
        return response.json() if response.content else None


@dataclass
class World:
    """A running app."""

    app: FastAPI
    client: httpx2.AsyncClient

    async def person(self, name: str) -> Person:
        """Register and log in."""
        account = {"email": f"{name}@example.com", "password": PASSWORD}
        made = (await self.client.post("/auth/register", json=account)).json()
        tokens = (await self.client.post("/auth/login", json=account)).json()
        return Person(self.client, made["id"], {"Authorization": f"Bearer {tokens['access_token']}"})

    async def owner(self, name: str) -> Person:
        """Someone who owns an organisation and acts for it."""
        person = await self.person(name)
        person.headers["X-Tenant-Id"] = await self.organization(name, person)
        return person

    async def organization(self, name: str, owner: Person, *members: Person) -> str:
        """An organisation's id."""
        wiring = wiring_of(self.app)
        with wiring.active():
            async with wiring.get(AsyncDatabase).session() as session:
                organizations = Organizations(session)
                made = await organizations.create(name=name, owner_id=UUID(owner.id))
                for member in members:
                    await organizations.add_member(made.id, UUID(member.id))
        return str(made.id)


@pytest.fixture
async def world(migrated_sqlite_url: str) -> AsyncIterator[World]:
    """An app that publishes what it is told to; in the order in which nobody would add its rooms."""
    app = create_app(settings=Settings(app={"env": "test"}, sql={"url": migrated_sqlite_url}))
    add_webhooks(app, retry=WebhookRetry(schedule_seconds=(0.01, 0.01), jitter=0))
    add_jobs(app)
    add_tenancy(app)
    add_auth_users(app)
    add_db(app)

    @app.post("/publish", status_code=202)
    async def publish(topic: str, tenant: TenantId, session: DbSession, webhooks: WebhooksDep) -> None:
        await webhooks.publish(topic, {"by": tenant}, session=session)

    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield World(app, client)


async def _deliveries(person: Person, state: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while not (found := await person.ask("GET", f"/webhooks/deliveries?state={state}", 200)):
            await asyncio.sleep(0.01)
    return list(found)


async def test_an_event_reaches_a_subscriber_and_its_secret_is_shown_once(world: World) -> None:
    ana = await world.owner("ana")
    async with WebhookReceiver() as receiver:
        made = await ana.ask("POST", "/webhooks/endpoints", 201, json={"url": receiver.url, "topics": ["order.*"]})
        listed = await ana.ask("GET", "/webhooks/endpoints", 200)
        assert [one["id"] for one in listed] == [made["id"]]
        assert "secret" not in listed[0]
        await ana.ask("POST", "/publish?topic=order.paid", 202)
        await ana.ask("POST", "/publish?topic=user.created", 202)
        (received,) = await receiver.wait_for(1)
        WebhookSignature(made["secret"]).verify(received.headers, received.body)
        (delivery,) = await _deliveries(ana, "delivered")
    details = await ana.ask("GET", f"/webhooks/deliveries/{delivery['id']}", 200)
    assert [attempt["status"] for attempt in details["attempts"]] == [200]
    assert len(receiver.received) == 1


async def test_what_never_arrives_is_dead_and_can_be_sent_again(world: World) -> None:
    ana = await world.owner("ana")
    async with WebhookReceiver([500, 500, 500]) as receiver:
        await ana.ask("POST", "/webhooks/endpoints", 201, json={"url": receiver.url})
        await ana.ask("POST", "/publish?topic=order.paid", 202)
        (dead,) = await _deliveries(ana, "dead")
        assert len(receiver.received) == 3
        await ana.ask("POST", f"/webhooks/deliveries/{dead['id']}/redeliver", 202)
        await receiver.wait_for(4)
        (delivered,) = await _deliveries(ana, "delivered")
    assert delivered["id"] == dead["id"]
    assert {one.headers["webhook-id"] for one in receiver.received} == {dead["event_id"]}


async def test_another_tenant_sees_nothing_and_changes_nothing(world: World) -> None:
    ana, eve = await world.owner("ana"), await world.owner("eve")
    async with WebhookReceiver() as receiver:
        made = await ana.ask("POST", "/webhooks/endpoints", 201, json={"url": receiver.url})
        await ana.ask("POST", "/publish?topic=order.paid", 202)
        (delivery,) = await _deliveries(ana, "delivered")
        await eve.ask("POST", "/publish?topic=order.paid", 202)
    assert await eve.ask("GET", "/webhooks/endpoints", 200) == []
    assert await eve.ask("GET", "/webhooks/deliveries", 200) == []
    await eve.ask("GET", f"/webhooks/deliveries/{delivery['id']}", 404)
    await eve.ask("POST", f"/webhooks/deliveries/{delivery['id']}/redeliver", 404)
    await eve.ask("DELETE", f"/webhooks/endpoints/{made['id']}", 404)
    assert len(await ana.ask("GET", "/webhooks/endpoints", 200)) == 1
    assert len(receiver.received) == 1


async def test_a_member_who_is_no_owner_or_admin_may_not_manage(world: World) -> None:
    ana, bob = await world.person("ana"), await world.person("bob")
    bob.headers["X-Tenant-Id"] = await world.organization("acme", ana, bob)
    for method, path in [
        ("GET", "/webhooks/endpoints"),
        ("POST", "/webhooks/endpoints"),
        ("GET", "/webhooks/deliveries"),
    ]:
        request = {"json": {"url": "http://127.0.0.1:9/"}} if method == "POST" else {}
        await bob.ask(method, path, 403, **request)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"url": "http://169.254.169.254/"}, 422),
        ({"url": "file:///etc/passwd"}, 422),
        ({"url": "http://127.0.0.1:9/", "topics": ["UPPER"]}, 422),
        ({"url": "http://127.0.0.1:9/", "topics": []}, 422),
        ({"url": "http://127.0.0.1:9/", "colour": "red"}, 422),
        ({}, 422),
    ],
)
async def test_an_unacceptable_endpoint_is_a_problem_and_is_not_stored(
    world: World, body: dict[str, Any], status: int
) -> None:
    ana = await world.owner("ana")
    problem = await ana.ask("POST", "/webhooks/endpoints", status, json=body)
    assert problem["status"] == status
    assert await ana.ask("GET", "/webhooks/endpoints", 200) == []


async def test_a_missing_room_is_named_at_the_start(sqlite_url: str) -> None:
    app = create_app(settings=Settings(app={"env": "test"}, sql={"url": sqlite_url}))
    add_webhooks(app)
    add_db(app)
    with pytest.raises(ConfigurationError, match=r"call add_jobs\(app\)"):
        async with app.router.lifespan_context(app):
            pass


async def test_outside_local_and_test_the_sealing_key_must_be_set(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEBHOOKS_KEY", raising=False)
    monkeypatch.setenv("AUTH_SECRET", "a test secret of more than 32 bytes, no less")
    settings = Settings(app={"env": "prod"}, sql={"url": sqlite_url, "migrate_on_start": True})
    app = create_app(settings=settings)
    for add in (add_webhooks, add_jobs, add_db):
        add(app)
    with pytest.raises(MissingSecretError, match="WEBHOOKS_KEY is not set"):
        async with app.router.lifespan_context(app):
            pass
