"""Delivering: one event to one endpoint, attempt by attempt, until it arrives or lands in the dead letter."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ConflictError, EgressRefusedError, NotFoundError, SvcInfraError
from svc_infra.http import HttpClient
from svc_infra.jobs import JobContext, JobQueue, Retry, task
from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import metrics
from svc_infra.security import FieldCipher
from svc_infra.types import new_id
from svc_infra.webhooks.models import Delivery, DeliveryAttempt, DeliveryState, WebhookEndpoint, WebhookEvent
from svc_infra.webhooks.retry import WebhookRetry
from svc_infra.webhooks.sign import WebhookSignature
from svc_infra.webhooks.subscribe import Endpoints, secret_context

CRASH_ALLOWANCE = 10  # attempts that a delivery's job has beyond its schedule, for workers that die under it

OnDead = Callable[[AsyncSession, Delivery], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    status: int | None = None
    error: str | None = None
    retry_after_seconds: float | None = None
    final: bool = False


class WebhookDelivery:
    """Sends events, records every attempt, and keeps what did not arrive until someone sends it again.

    At least once: a worker that dies after the receiver answered sends again, with the same `webhook-id`.

    Args:
        retry: When to try again; `WebhookRetry()` by default.
        timeout_seconds: Longest wait for one attempt.
        on_dead: Called in the transaction that gives a delivery up, to notify the application.
    """

    def __init__(
        self,
        db: AsyncDatabase,
        queue: JobQueue,
        http: HttpClient,
        endpoints: Endpoints,
        cipher: FieldCipher,
        *,
        retry: WebhookRetry | None = None,
        timeout_seconds: float = 10.0,
        on_dead: OnDead | None = None,
    ) -> None:
        self._db = db
        self._queue = queue
        self._http = http
        self._endpoints = endpoints
        self._cipher = cipher
        self._retry = retry or WebhookRetry()
        self._timeout_seconds = timeout_seconds
        self._on_dead = on_dead

    async def fan_out(self, session: AsyncSession, event_id: UUID) -> int:
        """Make a delivery of the event for each subscribed endpoint that has none yet; returns how many."""
        event = await session.get_one(WebhookEvent, event_id)
        endpoints = await self._endpoints.subscribed(session, event.tenant_id, event.topic)
        known = set(await session.scalars(select(Delivery.endpoint_id).where(Delivery.event_id == event.id)))
        new = [endpoint for endpoint in endpoints if endpoint.id not in known]  # a crash may have run this before
        for endpoint in new:
            delivery = Delivery(
                id=new_id(),
                tenant_id=event.tenant_id,
                event_id=event.id,
                endpoint_id=endpoint.id,
                created_at=datetime.now(UTC),
            )
            session.add(delivery)
            await self._enqueue(session, delivery.id)
        return len(new)

    async def attempt(self, delivery_id: UUID) -> float | None:
        """Try a pending delivery once.

        Returns:
            Seconds until the next attempt is due, or None when there is none: it arrived, it was given up, or there
            was nothing to do.
        """
        async with self._db.session(read_only=True) as session:
            row = (await session.execute(_pending(delivery_id))).first()
        if row is None:
            return None
        delivery, event, endpoint = row
        started, clock = datetime.now(UTC), time.perf_counter()
        outcome = await self._send(event, endpoint)
        seconds = time.perf_counter() - clock
        delay = self._retry.delay_seconds(delivery.attempts + 1, retry_after_seconds=outcome.retry_after_seconds)
        arrived = outcome.error is None
        dead = not arrived and (outcome.final or delay is None)
        state = DeliveryState.DELIVERED if arrived else DeliveryState.DEAD if dead else DeliveryState.PENDING
        async with self._db.session() as session:
            session.add(
                DeliveryAttempt(
                    delivery_id=delivery.id,
                    started_at=started,
                    duration_ms=round(seconds * 1000),
                    status=outcome.status,
                    error=outcome.error,
                )
            )
            changed = await session.execute(
                update(Delivery)
                .where(Delivery.id == delivery.id, Delivery.state == DeliveryState.PENDING)
                .values(
                    state=state,
                    attempts=Delivery.attempts + 1,
                    last_status=outcome.status,
                    last_error=outcome.error,
                    delivered_at=datetime.now(UTC) if arrived else None,
                )
            )
            if outcome.status == 410:
                await session.execute(
                    update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id).values(enabled=False)
                )
            if dead and changed.rowcount and self._on_dead is not None:  # type: ignore[attr-defined]
                await self._on_dead(session, await session.get_one(Delivery, delivery.id))
        _report(state, delivery, event, endpoint, outcome, seconds)
        return delay if state is DeliveryState.PENDING else None

    async def redeliver(self, session: AsyncSession, *, tenant_id: str, delivery_id: UUID) -> Delivery:
        """Send a finished delivery again from its first attempt, under the same `webhook-id`.

        Raises:
            NotFoundError: The tenant has no such delivery.
            ConflictError: It is still being tried.
        """
        delivery = await self.get(session, tenant_id=tenant_id, delivery_id=delivery_id)
        if delivery.state == DeliveryState.PENDING:
            raise ConflictError("This delivery is still being tried.")
        delivery.state, delivery.attempts, delivery.delivered_at = DeliveryState.PENDING, 0, None
        await self._enqueue(session, delivery.id)
        return delivery

    async def get(self, session: AsyncSession, *, tenant_id: str, delivery_id: UUID) -> Delivery:
        """One delivery of the tenant.

        Raises:
            NotFoundError: There is none.
        """
        wanted = select(Delivery).where(Delivery.id == delivery_id, Delivery.tenant_id == tenant_id)
        delivery = (await session.scalars(wanted)).first()
        if delivery is None:
            raise NotFoundError("Webhook delivery", delivery_id)
        return delivery

    async def list(
        self, session: AsyncSession, *, tenant_id: str, state: DeliveryState | None = None, limit: int = 100
    ) -> Sequence[Delivery]:
        """The tenant's newest deliveries, newest first; `limit` is at most 1,000."""
        wanted = select(Delivery).where(Delivery.tenant_id == tenant_id)
        if state is not None:
            wanted = wanted.where(Delivery.state == state)
        return (await session.scalars(wanted.order_by(Delivery.created_at.desc()).limit(min(limit, 1000)))).all()

    async def attempts(self, session: AsyncSession, delivery: Delivery) -> Sequence[DeliveryAttempt]:
        """Every attempt of a delivery, oldest first."""
        made = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id == delivery.id)
        return (await session.scalars(made.order_by(DeliveryAttempt.started_at))).all()

    async def _enqueue(self, session: AsyncSession, delivery_id: UUID) -> None:
        attempts = self._retry.max_attempts + CRASH_ALLOWANCE
        await deliver.options(max_attempts=attempts, session=session, on=self._queue).enqueue(delivery_id=delivery_id)

    async def _send(self, event: WebhookEvent, endpoint: WebhookEndpoint) -> _Outcome:
        if not endpoint.enabled:
            return _Outcome(error="The endpoint is disabled.", final=True)
        body = event_body(event)
        signature = WebhookSignature(self._cipher.open(endpoint.sealed_secret, context=secret_context(endpoint.id)))
        headers = {"Content-Type": "application/json", **signature.sign(str(event.id), body)}
        try:
            response = await self._http.request(
                "POST",
                endpoint.url,
                headers=headers,
                content=body,
                timeout_seconds=self._timeout_seconds,
                truncate=True,  # what a receiver answers beyond its status is of no interest
            )
        except EgressRefusedError as error:
            return _Outcome(error=error.detail, final=True)
        except SvcInfraError as error:  # unreachable, too slow, not HTTP: all worth another attempt
            return _Outcome(error=error.detail[:500])
        if 200 <= response.status < 300:
            return _Outcome(status=response.status)
        return _Outcome(
            status=response.status,
            error=f"The receiver answered {response.status}.",
            retry_after_seconds=_seconds(response.headers.get("retry-after", "")),
            final=response.status == 410,
        )


@task(name="webhooks.fan_out")
async def fan_out(event_id: UUID, context: JobContext, session: AsyncSession) -> int:
    """Make the deliveries of an event."""
    return await context.get(WebhookDelivery).fan_out(session, event_id)


@task(name="webhooks.deliver")
async def deliver(delivery_id: UUID, context: JobContext) -> None:
    """Try one delivery; the job comes back when the next attempt is due."""
    delay_seconds = await context.get(WebhookDelivery).attempt(delivery_id)
    if delay_seconds is not None:
        raise Retry("The delivery did not arrive.", after_seconds=delay_seconds)


def event_body(event: WebhookEvent) -> bytes:
    """The bytes that are sent and signed: canonical JSON (sorted keys, no spaces), the same for every attempt."""
    document: dict[str, Any] = {
        "topic": event.topic,
        "payload": event.payload,
        "version": event.version,
        "created_at": event.created_at.isoformat(),
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _pending(delivery_id: UUID) -> Any:
    return (
        select(Delivery, WebhookEvent, WebhookEndpoint)
        .join(WebhookEvent, WebhookEvent.id == Delivery.event_id)
        .join(WebhookEndpoint, WebhookEndpoint.id == Delivery.endpoint_id)
        .where(Delivery.id == delivery_id, Delivery.state == DeliveryState.PENDING)
    )


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10 else None


def _report(
    state: DeliveryState,
    delivery: Delivery,
    event: WebhookEvent,
    endpoint: WebhookEndpoint,
    outcome: _Outcome,
    seconds: float,
) -> None:
    result = state if state is not DeliveryState.PENDING else "retrying"
    metrics.increment("webhooks.attempts", outcome=str(result))
    metrics.observe("webhooks.attempt_seconds", seconds)
    log = logger.info if state is DeliveryState.DELIVERED else logger.warning
    log(
        f"webhook.{result}",
        delivery_id=str(delivery.id),
        event_id=str(event.id),
        topic=event.topic,
        endpoint_id=str(endpoint.id),
        attempt=delivery.attempts + 1,
        status=outcome.status,
        error=outcome.error,
        duration_ms=round(seconds * 1000),
    )
