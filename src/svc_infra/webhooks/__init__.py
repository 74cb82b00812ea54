"""Webhooks: events told to a tenant's endpoints, signed, retried, and kept when they do not arrive.

- `publish`: `Webhooks`, an event written in the caller's transaction
- `subscribe`: `Endpoints`, who wants to be told what
- `deliver`: `WebhookDelivery`, attempts, dead letter and redelivery
- `retry`: `WebhookRetry`, when to try again
- `sign`: `WebhookSignature` and `verify_webhook_signature`, for senders and receivers
- `http`: the `/webhooks` routes, `WebhooksDep` · `add`: `add_webhooks` · `models`: tables
"""

from svc_infra.webhooks.deliver import WebhookDelivery
from svc_infra.webhooks.models import DeliveryState
from svc_infra.webhooks.publish import Webhooks
from svc_infra.webhooks.retry import WebhookRetry
from svc_infra.webhooks.sign import WebhookSignature, new_secret, verify_webhook_signature
from svc_infra.webhooks.subscribe import Endpoints

__all__ = [
    "DeliveryState",
    "Endpoints",
    "WebhookDelivery",
    "WebhookRetry",
    "WebhookSignature",
    "Webhooks",
    "new_secret",
    "verify_webhook_signature",
]
