"""Publishing: an event written in the caller's transaction, and told to its subscribers after the commit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from pydantic_core import PydanticSerializationError, to_jsonable_python
from sqlalchemy import insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError, ValidationError
from svc_infra.jobs import JobQueue
from svc_infra.obs.context import current
from svc_infra.types import new_id
from svc_infra.webhooks.deliver import fan_out
from svc_infra.webhooks.models import WebhookEvent
from svc_infra.webhooks.subscribe import valid_topic

MAX_PAYLOAD_BYTES = 256 * 1024


class Webhooks:
    """Publishes events to the endpoints of a tenant.

    Args:
        queue: Carries the fan-out and the deliveries; must be able to enqueue in a unit of work.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    async def publish(
        self,
        topic: str,
        payload: Mapping[str, Any],
        *,
        session: AsyncSession,
        tenant_id: str | None = None,
        key: str | None = None,
        version: int = 1,
    ) -> UUID:
        """Tell a tenant's subscribers that something happened, if and only if this transaction commits.

        Args:
            topic: Dotted lower-case words, such as `ticket.created`.
            payload: JSON object, at most 256 KiB.
            session: The unit of work of the change that the event tells of.
            tenant_id: Whose subscribers; the current request's or job's tenant when left out.
            key: Idempotency key within the tenant: publishing it again gives the first event and tells nobody twice.
            version: Version of the payload's shape.

        Returns:
            The event's id, which receivers see as `webhook-id`.

        Raises:
            ValidationError: The topic or the payload is not acceptable.
            ConfigurationError: No tenant is given and none is in context.
        """
        tenant = current().tenant_id if tenant_id is None else tenant_id
        if not tenant:
            raise ConfigurationError(
                "An event belongs to a tenant: pass tenant_id, or publish within a tenant's request."
            )
        if not valid_topic(topic):
            raise ValidationError(f"{topic!r} is no topic: use dotted lower-case words such as ticket.created.")
        event_id = new_id()
        values = {
            "id": event_id,
            "tenant_id": tenant,
            "topic": topic,
            "payload": _json(payload),
            "version": version,
            "key": key,
            "created_at": datetime.now(UTC),
        }
        if key is not None and (known := await _insert_once(session, values)) is not None:
            return known
        if key is None:
            await session.execute(insert(WebhookEvent).values(**values))
        await fan_out.options(job_id=str(event_id), session=session, on=self._queue).enqueue(event_id=event_id)
        return event_id


async def _insert_once(session: AsyncSession, values: dict[str, Any]) -> UUID | None:
    """Insert unless the key is taken; then the id of the event that has it."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(WebhookEvent).values(**values)
    statement = statement.on_conflict_do_nothing(index_elements=["tenant_id", "key"])
    if (await session.execute(statement.returning(WebhookEvent.id))).first() is not None:
        return None
    same = select(WebhookEvent.id).where(
        WebhookEvent.tenant_id == values["tenant_id"], WebhookEvent.key == values["key"]
    )
    return (await session.execute(same)).scalar_one()


def _json(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload as receivers will see it: identifiers, times and models become JSON."""
    try:
        plain: dict[str, Any] = to_jsonable_python(dict(payload))
        size = len(orjson.dumps(plain))
    except (PydanticSerializationError, TypeError, ValueError) as error:
        raise ValidationError(f"The payload is no JSON object: {error}.") from error
    if size > MAX_PAYLOAD_BYTES:
        raise ValidationError(f"The payload is larger than {MAX_PAYLOAD_BYTES} bytes: publish an id instead.")
    return plain
