"""Keys in Redis or Valkey."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.errors import ConfigurationError
from svc_infra.idempotency.answer import Answer
from svc_infra.idempotency.store import DEFAULT_LEASE_SECONDS, DEFAULT_TTL_SECONDS, Claim, Refusal, check_times
from svc_infra.redis import connect, translating

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

# A hash for each key: fingerprint, token, lease (its end in milliseconds since 1970) and, once done, status, headers
# and body. ARGV: token, fingerprint, length of the lease and time to live in milliseconds.
_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 'fingerprint', 'lease', 'status', 'headers', 'body')
if kept[1] then
  if kept[1] ~= ARGV[2] then return {'reused'} end
  if kept[3] then return {'done', kept[3], kept[4], kept[5]} end
  if tonumber(kept[2]) > now then return {'in progress'} end
end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'token', ARGV[1],
  'lease', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'claimed'}
"""
_HELD = """
local kept = redis.call('HMGET', KEYS[1], 'token', 'status')
if kept[1] ~= ARGV[1] or kept[2] then return 0 end
"""
# ARGV: token, status, headers, body, time to live in milliseconds.
_FINISH = f"""{_HELD}
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'headers', ARGV[3], 'body', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""
_RELEASE = f"""{_HELD}
redis.call('DEL', KEYS[1])
return 1
"""


class RedisIdempotencyStore:
    """Keeps keys in Redis (6.2 or newer) or Valkey: one round trip before the handler, and one after it.

    The answer is kept after the handler's transaction has committed and before it is sent; the two cannot be one. So:

    - a crash before the commit leaves no effect, and the key can be claimed again when the lease has ended;
    - a crash between the commit and the keeping of the answer, or a server that cannot be reached just then, leaves an
      effect without an answer: until the lease ends a retry is told to wait, after it **the handler runs again**;
    - a request that takes longer than its lease runs beside the retry that takes its key over: both have effects, and
      the answer of the second one is kept;
    - what the server forgets was never claimed. Without persistence a restart forgets everything, with
      `appendfsync everysec` a crash of its machine about the last second, and a failover what the new primary had not
      received. `maxmemory-policy` must be `noeviction`: any other forgets keys when memory is short.

    In all other cases a key has one effect. Where none of them may happen, use `SqlIdempotencyStore`.

    Args:
        client: A client that answers in bytes (`svc_infra.redis.connect`), or a URL, whose client `close` closes.
        prefix: The keys begin with `prefix:`.
        lease_seconds: When a key whose request never finished can be claimed again; longer than any handler takes.
        ttl_seconds: How long an answer is kept.

    Raises:
        ConfigurationError: The URL cannot be understood, or the client does not answer in bytes.
        MissingExtraError: redis is not installed.
    """

    def __init__(
        self,
        client: Redis | RedisCluster | str,
        *,
        prefix: str = "idempotency",
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
    ) -> None:
        check_times(lease_seconds, ttl_seconds)
        self._owned = isinstance(client, str)
        self._client: Any = connect(client) if isinstance(client, str) else client
        if self._client.get_encoder().decode_responses:
            raise ConfigurationError(
                "RedisIdempotencyStore needs a client that answers in bytes: leave decode_responses off."
            )
        self._prefix = prefix
        self._lease_ms = round(lease_seconds * 1000)
        self._ttl_ms = round(ttl_seconds * 1000)
        self._claim, self._finish, self._release = map(self._client.register_script, (_CLAIM, _FINISH, _RELEASE))

    async def claim(self, key: str, fingerprint: str) -> Claim | Answer | Refusal:
        """See `IdempotencyStore.claim`. One whose answer is lost on the way holds the key until its lease ends."""
        claim = Claim(key, secrets.token_hex(16))
        match await self._run(self._claim, key, claim.token, fingerprint, self._lease_ms, self._ttl_ms):
            case [b"claimed"]:
                return claim
            case [b"reused"]:
                return Refusal.REUSED
            case [b"done", status, headers, body]:
                return Answer.unpacked(int(status), headers, body)
            case _:
                return Refusal.IN_PROGRESS

    def joins(self, session: AsyncSession | None) -> bool:
        """See `IdempotencyStore.joins`: no unit of work reaches here."""
        return False

    async def finish(self, claim: Claim, answer: Answer, *, session: AsyncSession | None = None) -> bool:
        """See `IdempotencyStore.finish`."""
        kept = (answer.status, answer.packed_headers(), answer.body)
        return bool(await self._run(self._finish, claim.key, claim.token, *kept, self._ttl_ms))

    async def release(self, claim: Claim, *, session: AsyncSession | None = None) -> bool:
        """See `IdempotencyStore.release`."""
        return bool(await self._run(self._release, claim.key, claim.token))

    async def purge(self, *, limit: int) -> int:
        """See `IdempotencyStore.purge`: the server does it."""
        return 0

    async def ping(self) -> None:
        """See `IdempotencyStore.ping`."""
        with translating():
            await self._client.ping()

    async def close(self) -> None:
        """See `IdempotencyStore.close`."""
        if self._owned:
            await self._client.aclose()

    async def _run(self, script: Any, key: str, *arguments: str | bytes | int) -> Any:
        with translating():
            return await script(keys=[f"{self._prefix}:{key}"], args=arguments)
