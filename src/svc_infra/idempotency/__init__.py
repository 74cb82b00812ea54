"""Idempotency: requests that may be sent twice, and have one effect and one answer.

- `http`: `Idempotent(...)`, which a route declares, and `IdempotentRoute`, which keeps it · `add`: `add_idempotency`
- `key`: the header, whose key it is, and which request it stands for · `answer`: what is kept of an answer
- `exchange`: one request, from the claim of its key to the answer that is kept
- `store`: the port, and the states of a key · `_sql`, `_redis`: where keys are kept · `models`: the table

Conditional requests (`ETag`, `If-Match`) are in `svc_infra.middleware.conditional`.
"""

from svc_infra.idempotency._redis import RedisIdempotencyStore
from svc_infra.idempotency._sql import SqlIdempotencyStore
from svc_infra.idempotency.answer import Answer
from svc_infra.idempotency.store import Claim, IdempotencyStore, Refusal

__all__ = ["Answer", "Claim", "IdempotencyStore", "RedisIdempotencyStore", "Refusal", "SqlIdempotencyStore"]
