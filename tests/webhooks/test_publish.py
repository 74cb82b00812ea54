"""Publishing in the caller's transaction."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.obs.context import Context, enter, leave
from svc_infra.webhooks.models import WebhookEvent
from svc_infra.webhooks.publish import MAX_PAYLOAD_BYTES
from tests.webhooks.conftest import TENANT, World


async def _events(world: World) -> int:
    async with world.db.session(read_only=True) as session:
        return await session.scalar(select(func.count()).select_from(WebhookEvent)) or 0


async def test_a_rolled_back_event_was_never_there(world: World) -> None:
    async with world.db.session() as session:
        await world.webhooks.publish("ticket.created", {"id": 1}, session=session, tenant_id=TENANT)
        await session.rollback()
    assert await _events(world) == 0
    assert await world.queued("webhooks.fan_out") == 0


async def test_a_committed_event_has_its_fan_out_job(world: World) -> None:
    async with world.db.session() as session:
        event_id = await world.webhooks.publish("ticket.created", {"id": 1}, session=session, tenant_id=TENANT)
    job = await world.queue.get(str(event_id))
    assert job is not None
    assert (job.name, job.payload) == ("webhooks.fan_out", {"event_id": str(event_id)})


async def test_the_same_key_is_the_same_event_and_is_told_once(world: World) -> None:
    first = await world.publish(key="order-1")
    async with world.db.session() as session:
        again = await world.webhooks.publish("ticket.created", {}, session=session, tenant_id=TENANT, key="order-1")
        other = await world.webhooks.publish("ticket.created", {}, session=session, tenant_id="b", key="order-1")
    assert again == first
    assert other != first
    assert await world.queued("webhooks.fan_out") == 2


async def test_concurrent_publishers_of_one_key_make_one_event(world: World) -> None:
    async def publish() -> object:
        async with world.db.session() as session:
            return await world.webhooks.publish("a.b", {}, session=session, tenant_id=TENANT, key="once")

    assert len(set(await asyncio.gather(*(publish() for _ in range(10))))) == 1
    assert await _events(world) == 1


async def test_the_tenant_in_context_is_the_default_and_none_is_refused(world: World) -> None:
    token = enter(Context(tenant_id="from-context"))
    try:
        async with world.db.session() as session:
            event_id = await world.webhooks.publish("a.b", {}, session=session)
            assert (await session.get_one(WebhookEvent, event_id)).tenant_id == "from-context"
    finally:
        leave(token)
    with pytest.raises(ConfigurationError, match="tenant"):
        async with world.db.session() as session:
            await world.webhooks.publish("a.b", {}, session=session)


async def test_identifiers_and_times_become_json(world: World) -> None:
    number, moment = uuid4(), datetime(2030, 1, 1, tzinfo=UTC)
    event_id = await world.publish(payload={"id": number, "at": moment})
    async with world.db.session(read_only=True) as session:
        event = await session.get_one(WebhookEvent, event_id)
    assert event.payload == {"id": str(number), "at": "2030-01-01T00:00:00Z"}


@pytest.mark.parametrize("topic", ["", "Ticket.Created", "ticket..created", "ticket.", "a b", "*", "x" * 201])
async def test_a_malformed_topic_is_refused_and_nothing_is_stored(world: World, topic: str) -> None:
    with pytest.raises(ValidationError, match="topic"):
        await world.publish(topic)
    assert await _events(world) == 0


@pytest.mark.parametrize("payload", [{"x": object()}, {"x": "y" * MAX_PAYLOAD_BYTES}], ids=["no json", "too large"])
async def test_a_payload_that_cannot_be_sent_is_refused(world: World, payload: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="payload"):
        await world.publish(payload=payload)
    assert await _events(world) == 0
