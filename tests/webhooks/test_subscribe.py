"""Endpoints."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from sqlalchemy import select

from svc_infra.errors import ConfigurationError, EgressRefusedError, NotFoundError, SvcInfraError, ValidationError
from svc_infra.http import HttpClient
from svc_infra.security.audit import AuditEntry
from svc_infra.webhooks import Endpoints
from svc_infra.webhooks.models import WebhookEndpoint
from svc_infra.webhooks.subscribe import MAX_ENDPOINTS, matches, secret_context
from tests.webhooks.conftest import TENANT, TRAIL, World, cipher_of

URL = "http://127.0.0.1:9/hook"


@pytest.mark.parametrize(
    ("pattern", "topic", "covered"),
    [
        ("*", "a.b", True),
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", True),
        ("a.*", "a", False),
        ("a.*", "ab.c", False),
    ],
)
def test_which_topics_a_pattern_covers(pattern: str, topic: str, covered: bool) -> None:
    assert matches([pattern], topic) is covered


async def test_only_endpoints_that_asked_are_told_and_never_another_tenants(world: World) -> None:
    asked, _ = await world.subscribe(URL, "ticket.*")
    await world.subscribe(URL, "user.created")
    await world.subscribe(URL, "ticket.*", tenant="tenant-b")
    await world.publish("ticket.created")
    assert [one.endpoint_id for one in await world.all_deliveries()] == [asked]
    assert await world.all_deliveries("tenant-b") == []


async def test_the_secret_is_sealed_at_rest_and_opens_with_its_key_only(world: World) -> None:
    endpoint_id, secret = await world.subscribe(URL)
    async with world.db.session(read_only=True) as session:
        sealed = (await session.get_one(WebhookEndpoint, endpoint_id)).sealed_secret
    assert secret not in sealed
    assert world.cipher.open(sealed, context=secret_context(endpoint_id)) == secret
    with pytest.raises(ConfigurationError, match="_PREVIOUS"):
        cipher_of("another key of more than thirty-two bytes").open(sealed, context=secret_context(endpoint_id))
    with pytest.raises(SvcInfraError, match="belongs elsewhere"):
        world.cipher.open(sealed, context=secret_context(uuid4()))


async def test_it_is_on_record_who_sends_events_where_and_no_secret_with_it(world: World) -> None:
    url = "http://127.0.0.1:9/services/T0/secret-of-the-receiver?key=another"
    endpoint_id, secret = await world.subscribe(url, "ticket.*")
    async with world.db.session() as session:
        await world.endpoints.remove(session, tenant_id=TENANT, endpoint_id=endpoint_id)
    async with world.db.session(read_only=True) as session:
        wanted = select(AuditEntry).where(AuditEntry.tenant_id == TENANT).order_by(AuditEntry.sequence)
        added, removed = await session.scalars(wanted)
    assert (added.action, removed.action) == ("webhook.endpoint_added", "webhook.endpoint_removed")
    assert added.target == removed.target == f"webhook_endpoint:{endpoint_id}"
    assert json.loads(added.after or "") == {"host": "127.0.0.1", "topics": ["ticket.*"]}
    assert json.loads(removed.before or "") == {"host": "127.0.0.1"}
    assert not any(one in f"{vars(added)}{vars(removed)}" for one in (secret, "secret-of", "another"))


async def test_a_private_address_is_refused_where_that_is_not_allowed(world: World) -> None:
    async with HttpClient(allow_private_addresses=False) as http, world.db.session() as session:
        for url in (URL, "http://169.254.169.254/latest", "http://[::1]/", "ftp://example.com/", "http://u:p@x.com/"):
            with pytest.raises(EgressRefusedError):
                await Endpoints(world.cipher, http, TRAIL).add(session, tenant_id=TENANT, url=url, topics=["*"])
        assert await world.endpoints.list(session, TENANT) == []


@pytest.mark.parametrize("topics", [[], ["**"], ["Ticket"], ["a.*.b"], ["a"] * 51])
async def test_malformed_topics_are_refused(world: World, topics: list[str]) -> None:
    async with world.db.session() as session:
        with pytest.raises(ValidationError, match="topics"):
            await world.endpoints.add(session, tenant_id=TENANT, url=URL, topics=topics)


async def test_a_tenant_has_a_bounded_number_of_endpoints(world: World) -> None:
    async with world.db.session() as session:
        for _ in range(MAX_ENDPOINTS):
            await world.endpoints.add(session, tenant_id=TENANT, url=URL, topics=["*"])
        with pytest.raises(ValidationError, match="at most"):
            await world.endpoints.add(session, tenant_id=TENANT, url=URL, topics=["*"])
        await world.endpoints.add(session, tenant_id="tenant-b", url=URL, topics=["*"])


async def test_removing_an_endpoint_forgets_its_deliveries_and_a_foreign_one_does_not_exist(world: World) -> None:
    endpoint_id, _ = await world.subscribe(URL)
    await world.publish()
    with pytest.raises(NotFoundError):
        async with world.db.session() as session:
            await world.endpoints.remove(session, tenant_id="tenant-b", endpoint_id=endpoint_id)
    assert len(await world.all_deliveries()) == 1
    async with world.db.session() as session:
        await world.endpoints.remove(session, tenant_id=TENANT, endpoint_id=endpoint_id)
    assert await world.all_deliveries() == []
