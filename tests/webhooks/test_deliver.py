"""Delivering over real HTTP."""

from __future__ import annotations

import asyncio

import pytest
import standardwebhooks
from sqlalchemy import func, select

from svc_infra.errors import ConflictError, NotFoundError
from svc_infra.http import HttpClient
from svc_infra.testing import WebhookReceiver
from svc_infra.webhooks import DeliveryState, WebhookDelivery
from svc_infra.webhooks.models import Delivery, DeliveryAttempt, WebhookEndpoint
from tests.webhooks.conftest import TENANT, World


async def _one(world: World) -> Delivery:
    (delivery,) = await world.all_deliveries()
    return delivery


async def _attempts(world: World, delivery: Delivery) -> list[tuple[int | None, str | None]]:
    async with world.db.session(read_only=True) as session:
        return [(one.status, one.error) for one in await world.deliveries.attempts(session, delivery)]


async def test_an_event_arrives_signed_and_is_recorded(world: World) -> None:
    async with WebhookReceiver() as receiver:
        _, secret = await world.subscribe(receiver.url)
        event_id = await world.publish("ticket.created", {"id": 7}, version=3)
        assert await world.deliveries.attempt((await _one(world)).id) is None
    (received,) = receiver.received
    standardwebhooks.Webhook(secret).verify(received.body, dict(received.headers))
    assert received.headers["webhook-id"] == str(event_id)
    assert received.headers["content-type"] == "application/json"
    assert received.event.keys() == {"topic", "payload", "version", "created_at"}
    assert (received.event["topic"], received.event["payload"], received.event["version"]) == (
        "ticket.created",
        {"id": 7},
        3,
    )
    delivery = await _one(world)
    assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.DELIVERED, 1, 200)
    assert delivery.delivered_at is not None
    assert await _attempts(world, delivery) == [(200, None)]


async def test_every_attempt_sends_the_same_bytes_under_the_same_id(world: World) -> None:
    async with WebhookReceiver([500]) as receiver:
        await world.subscribe(receiver.url)
        await world.publish(payload={"b": 1, "a": [1.5, "ü"]})
        delivery = await _one(world)
        await world.deliveries.attempt(delivery.id)
        await world.deliveries.attempt(delivery.id)
    first, second = receiver.received
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


@pytest.mark.parametrize("status", [301, 400, 404, 500, 503])
async def test_anything_but_success_is_tried_again_until_the_schedule_ends(world: World, status: int) -> None:
    async with WebhookReceiver([status] * 3) as receiver:
        await world.subscribe(receiver.url)
        await world.publish()
        delivery = await _one(world)
        delays = [await world.deliveries.attempt(delivery.id) for _ in range(3)]
        assert await world.deliveries.attempt(delivery.id) is None, "a dead delivery is not tried"
    assert delays == [1.0, 2.0, None]
    assert len(receiver.received) == 3
    delivery = await _one(world)
    assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.DEAD, 3, status)
    assert await _attempts(world, delivery) == [(status, f"The receiver answered {status}.")] * 3
    assert world.given_up == [delivery.id]


async def test_an_unreachable_receiver_is_tried_again_and_the_reason_is_kept(world: World) -> None:
    async with WebhookReceiver() as receiver:
        await world.subscribe(receiver.url)
    await world.publish()
    delivery = await _one(world)
    assert await world.deliveries.attempt(delivery.id) == 1.0
    ((status, error),) = await _attempts(world, delivery)
    assert status is None
    assert error
    assert (await _one(world)).state == DeliveryState.PENDING


async def test_a_receiver_can_ask_for_more_time(world: World) -> None:
    async with WebhookReceiver([503], headers={"Retry-After": "120"}) as receiver:
        await world.subscribe(receiver.url)
        await world.publish()
        assert await world.deliveries.attempt((await _one(world)).id) == 120.0


async def test_a_receiver_that_is_gone_is_disabled_and_not_asked_again(world: World) -> None:
    async with WebhookReceiver([410]) as receiver:
        endpoint_id, _ = await world.subscribe(receiver.url)
        await world.publish()
        assert await world.deliveries.attempt((await _one(world)).id) is None
        assert (await _one(world)).state == DeliveryState.DEAD
        async with world.db.session(read_only=True) as session:
            assert (await session.get_one(WebhookEndpoint, endpoint_id)).enabled is False
        await world.publish()
        assert len(await world.all_deliveries()) == 1


async def test_an_address_that_turned_private_is_given_up_at_once_and_never_called(world: World) -> None:
    async with WebhookReceiver() as receiver, HttpClient(allow_private_addresses=False) as guarded:
        await world.subscribe(receiver.url)
        await world.publish()
        strict = WebhookDelivery(world.db, world.queue, guarded, world.endpoints, world.cipher)
        assert await strict.attempt((await _one(world)).id) is None
    assert receiver.received == []
    assert (await _one(world)).state == DeliveryState.DEAD


async def test_redelivery_starts_afresh_under_the_same_id(world: World) -> None:
    async with WebhookReceiver([500, 500, 500]) as receiver:
        await world.subscribe(receiver.url)
        event_id = await world.publish()
        delivery = await _one(world)
        with pytest.raises(ConflictError):
            async with world.db.session() as session:
                await world.deliveries.redeliver(session, tenant_id=TENANT, delivery_id=delivery.id)
        for _ in range(3):
            await world.deliveries.attempt(delivery.id)
        before = await world.queued("webhooks.deliver")
        async with world.db.session() as session:
            await world.deliveries.redeliver(session, tenant_id=TENANT, delivery_id=delivery.id)
        assert await world.queued("webhooks.deliver") == before + 1
        assert await world.deliveries.attempt(delivery.id) is None
    assert receiver.received[-1].headers["webhook-id"] == str(event_id)
    assert (await _one(world)).state == DeliveryState.DELIVERED


async def test_another_tenants_delivery_does_not_exist(world: World) -> None:
    async with WebhookReceiver() as receiver:
        await world.subscribe(receiver.url)
    await world.publish()
    delivery = await _one(world)
    async with world.db.session() as session:
        with pytest.raises(NotFoundError):
            await world.deliveries.get(session, tenant_id="tenant-b", delivery_id=delivery.id)
        with pytest.raises(NotFoundError):
            await world.deliveries.redeliver(session, tenant_id="tenant-b", delivery_id=delivery.id)


async def test_fanning_out_twice_makes_no_second_delivery(world: World) -> None:
    async with WebhookReceiver() as receiver:
        await world.subscribe(receiver.url)
    event_id = await world.publish()
    async with world.db.session() as session:
        assert await world.deliveries.fan_out(session, event_id) == 0
    assert len(await world.all_deliveries()) == 1


async def test_two_attempts_at_once_count_both_and_finish_once(world: World) -> None:
    async with WebhookReceiver() as receiver:
        await world.subscribe(receiver.url)
        await world.publish()
        delivery = await _one(world)
        await asyncio.gather(*(world.deliveries.attempt(delivery.id) for _ in range(2)))
    assert (await _one(world)).state == DeliveryState.DELIVERED
    async with world.db.session(read_only=True) as session:
        made = await session.scalar(select(func.count()).select_from(DeliveryAttempt))
    assert made == len(receiver.received)
