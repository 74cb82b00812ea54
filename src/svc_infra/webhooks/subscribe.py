"""Endpoints: which addresses want which events of a tenant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import NotFoundError, ValidationError
from svc_infra.http import HttpClient
from svc_infra.security import FieldCipher
from svc_infra.security.audit import AuditTrail
from svc_infra.types import new_id
from svc_infra.webhooks.models import WebhookEndpoint
from svc_infra.webhooks.sign import new_secret

MAX_ENDPOINTS = 100  # for one tenant
MAX_TOPICS = 50  # for one endpoint
MAX_TOPIC_LENGTH = 200
TOPIC_PATTERN = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$"
"""What an endpoint asks for, for the documentation of an API."""
_TOPIC = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


class Endpoints:
    """Adds, lists and removes the endpoints of a tenant.

    Args:
        cipher: Seals each endpoint's signing secret.
        http: Decides which addresses may be called at all.
        trail: Where it is recorded who sends a tenant's events where.
    """

    def __init__(self, cipher: FieldCipher, http: HttpClient, trail: AuditTrail) -> None:
        self._cipher = cipher
        self._http = http
        self._trail = trail

    async def add(
        self, session: AsyncSession, *, tenant_id: str, url: str, topics: Sequence[str], description: str = ""
    ) -> tuple[WebhookEndpoint, str]:
        """Subscribe an address.

        Args:
            url: http or https, without user or password; its host must not be private where that is refused.
            topics: `ticket.created`, all below one with `ticket.*`, or everything with `*`.

        Returns:
            The endpoint and its signing secret, which is shown only now.

        Raises:
            EgressRefusedError: The address may not be called.
            ValidationError: A topic is malformed, or there are too many topics or endpoints.
        """
        if (
            not all(topic == "*" or valid_topic(topic.removesuffix(".*")) for topic in topics)
            or not 1 <= len(topics) <= MAX_TOPICS
        ):
            raise ValidationError(f"Give 1 to {MAX_TOPICS} topics such as ticket.created, ticket.* or *.")
        await self._http.check(url)
        if len(await self.list(session, tenant_id)) >= MAX_ENDPOINTS:
            raise ValidationError(f"A tenant has at most {MAX_ENDPOINTS} webhook endpoints: delete one first.")
        secret, endpoint_id = new_secret(), new_id()
        endpoint = WebhookEndpoint(
            id=endpoint_id,
            tenant_id=tenant_id,
            url=url,
            topics=sorted(set(topics)),
            description=description,
            sealed_secret=self._cipher.seal(secret, context=secret_context(endpoint_id)),
        )
        session.add(endpoint)
        await session.flush()
        facts = {"host": _host(url), "topics": endpoint.topics}
        await self._trail.record(
            session, "webhook.endpoint_added", target=_target(endpoint_id), tenant_id=tenant_id, after=facts
        )
        return endpoint, secret

    async def list(self, session: AsyncSession, tenant_id: str) -> list[WebhookEndpoint]:
        """The tenant's endpoints, oldest first."""
        found = select(WebhookEndpoint).where(WebhookEndpoint.tenant_id == tenant_id).order_by(WebhookEndpoint.id)
        return list(await session.scalars(found))

    async def subscribed(self, session: AsyncSession, tenant_id: str, topic: str) -> Sequence[WebhookEndpoint]:
        """The tenant's enabled endpoints that asked for this topic."""
        return [one for one in await self.list(session, tenant_id) if one.enabled and matches(one.topics, topic)]

    async def remove(self, session: AsyncSession, *, tenant_id: str, endpoint_id: UUID) -> None:
        """Unsubscribe an endpoint and forget its deliveries.

        Raises:
            NotFoundError: The tenant has no such endpoint.
        """
        wanted = delete(WebhookEndpoint).where(
            WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant_id == tenant_id
        )
        url = await session.scalar(wanted.returning(WebhookEndpoint.url))
        if url is None:
            raise NotFoundError("Webhook endpoint", endpoint_id)
        await self._trail.record(
            session,
            "webhook.endpoint_removed",
            target=_target(endpoint_id),
            tenant_id=tenant_id,
            before={"host": _host(url)},
        )


def _target(endpoint_id: UUID) -> str:
    return f"webhook_endpoint:{endpoint_id}"


def _host(url: str) -> str:
    """What may stay on record for ever: the rest of an address can be a secret."""
    return urlsplit(url).hostname or ""


def secret_context(endpoint_id: UUID) -> str:
    """Where the sealed secret of an endpoint belongs; it opens nowhere else."""
    return f"webhook:{endpoint_id}"


def valid_topic(topic: str) -> bool:
    """Whether this is a topic: dotted words of lower-case letters, digits and underscores, at most 200 characters."""
    return len(topic) <= MAX_TOPIC_LENGTH and _TOPIC.fullmatch(topic) is not None


def matches(patterns: Sequence[str], topic: str) -> bool:
    """Whether one of the patterns (`a.b`, `a.*`, `*`) covers the topic."""
    return any(
        pattern in ("*", topic) or (pattern.endswith(".*") and topic.startswith(pattern[:-1])) for pattern in patterns
    )
