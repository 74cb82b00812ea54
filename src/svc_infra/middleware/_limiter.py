"""What the rate limits of one request are: who is counted, what was decided, and what the answer says about it."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address
from math import ceil
from typing import Literal, NamedTuple

from starlette.types import Scope

from svc_infra.errors import RateLimitedError, SvcInfraError, UnavailableError
from svc_infra.middleware._scope import client_ip, route_template
from svc_infra.middleware.gcra import Rate, Use, Verdict
from svc_infra.middleware.problem import Headers
from svc_infra.middleware.rate_limit_store import RateLimitStore
from svc_infra.obs.logging import logger
from svc_infra.obs.metrics import metrics

LIMITED = "svc_infra.rate_limits"
"""The key under which a request's `Limited` lies in its scope; None there where the request is exempt."""
KEY_RATE = "svc_infra.api_key_rate"
"""The key under which the verified API key's own rate lies in a request's scope; None there where it has none."""
PAUSE_SECONDS = 0.5
"""How long a store that has failed is left alone; then one request tries it again."""
MAX_KNOWN_CHARGES = 4096
"""Of so many clients the process knows what they are charged to; of others it is made anew."""
LOG_INTERVAL_SECONDS = 60.0
"""The least time between two lines about a store that is down."""

OnOutage = Literal["allow", "deny"]


class Charge(NamedTuple):
    """One use as a policy's: under the name that the answer shows, for a partition that only a hash of it names."""

    policy: str
    partition: bytes
    use: Use


@lru_cache(maxsize=MAX_KNOWN_CHARGES)
def charge(prefix: str, rate: Rate, cost: int, *whom: str) -> Charge:
    """What a use of a policy is charged to; made once for a client that comes often.

    Args:
        prefix: Of the policy's name, which ends in its rate: who changes the rate begins a new count.
        rate: The rate.
        cost: How many uses it counts for.
        whom: What tells the policy's keys apart; the store and the client see only a hash of it.
    """
    policy = f"{prefix}-{rate.limit}-{rate.period_seconds}"
    digest = blake2b("\0".join(whom).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Charge(policy, digest, Use(f"{policy}:{digest.hex()}", rate, cost))


def address(scope: Scope) -> str:
    """The peer's address, or its /64 network under IPv6, of which one client has all."""
    peer = client_ip(scope)
    if ":" not in peer:
        return peer
    try:
        parsed = IPv6Address(peer.partition("%")[0])
    except ValueError:
        return peer
    return str(parsed.ipv4_mapped or parsed.packed[:8].hex())


class Limiter:
    """Asks the store; while that is down it does not make every request wait for it.

    Args:
        store: Where uses are counted.
        on_outage: What happens to requests that cannot be counted.
        clock: Seconds that do not go back.
    """

    def __init__(
        self, store: RateLimitStore, *, on_outage: OnOutage = "allow", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self.on_outage = on_outage
        self._clock = clock
        self._down = False
        self._paused_until = 0.0
        self._silent_until = 0.0
        self._uncounted = 0

    async def take(self, uses: Sequence[Use]) -> list[Verdict] | None:
        """Charge every use, or none when one is refused.

        Returns:
            A verdict for each use; None when the store is down and requests are allowed then.

        Raises:
            UnavailableError: The store is down and requests are denied then.
        """
        if self._down:
            if self._clock() < self._paused_until:
                self._tell(None)
                return None
            self._paused_until = self._clock() + PAUSE_SECONDS  # this request tries; those beside it do not wait
        try:
            verdicts = await self.store.take(uses)
        except Exception as error:  # noqa: BLE001 - whatever it is, the store cannot count; `_tell` logs and counts it
            self._down, self._paused_until = True, self._clock() + PAUSE_SECONDS
            self._tell(error)
            return None
        if self._down:
            self._down, self._silent_until = False, 0.0
            logger.info("rate_limit.store_up", uncounted_requests=self._uncounted)
            self._uncounted = 0
        return verdicts

    def _tell(self, error: Exception | None) -> None:
        self._uncounted += 1
        metrics.increment("rate_limit.uncounted", outcome=self.on_outage)
        if error is not None and self._clock() >= self._silent_until:
            self._silent_until = self._clock() + LOG_INTERVAL_SECONDS
            logger.error(
                "rate_limit.store_down",
                exc_info=error,
                uncounted_requests=self._uncounted,
                on_outage=self.on_outage,
            )
        if self.on_outage == "deny":
            raise UnavailableError("Requests cannot be counted right now: try again shortly.", retry_after_seconds=1)


class Limited:
    """The rate limits of one request.

    Args:
        limiter: Decides.
        root_path: The scope's, before any mount has added to it.
    """

    __slots__ = ("_charged", "_limiter", "_root_path", "refusal")

    def __init__(self, limiter: Limiter, root_path: str) -> None:
        self._limiter = limiter
        self._root_path = root_path
        self._charged: dict[str, tuple[Charge, Verdict | None]] = {}
        self.refusal: SvcInfraError | None = None

    def route(self, scope: Scope) -> str:
        """The method and the template of the route that a request has reached."""
        return f"{scope.get('method', 'WEBSOCKET')} {route_template(scope, self._root_path)}"

    async def take(self, charges: Sequence[Charge]) -> None:
        """Charge the request, unless it has been; all charges or none.

        Raises:
            RateLimitedError: One is refused.
            UnavailableError: The store is down and requests are denied then.
        """
        new = [one for one in {one.use.key: one for one in charges}.values() if one.use.key not in self._charged]
        if not new:
            return
        self._charged.update({one.use.key: (one, None) for one in new})
        try:
            verdicts = await self._limiter.take([one.use for one in new])
        except UnavailableError as error:
            self.refusal = error
            raise
        if verdicts is None:
            return
        decided = list(zip(new, verdicts, strict=True))
        self._charged.update({one.use.key: (one, verdict) for one, verdict in decided})
        refused = [(one, verdict) for one, verdict in decided if not verdict.allowed]
        if refused:
            self.refusal = _refusal(refused)
            raise self.refusal

    def headers(self) -> Headers:
        """What the answer says: the fields of draft-ietf-httpapi-ratelimit-headers-10, and those that are usual.

        The usual ones have room for one limit: the one that leaves the least.
        """
        policies, limits, known = [], [], []
        for (policy, partition, use), verdict in self._charged.values():
            key = b64encode(partition).decode()
            policies.append(f'"{policy}";q={use.rate.limit};w={use.rate.period_seconds};pk=:{key}:')
            if verdict is not None:
                limits.append(f'"{policy}";r={verdict.remaining};t={ceil(verdict.more_after_seconds)};pk=:{key}:')
                known.append((verdict.allowed, verdict.remaining, -verdict.reset_after_seconds, use.rate.limit))
        if not policies:
            return []
        headers = [(b"ratelimit-policy", ", ".join(policies).encode())]
        if known:
            _, remaining, before_reset, limit = min(known)
            headers += [
                (b"ratelimit", ", ".join(limits).encode()),
                (b"x-ratelimit-limit", str(limit).encode()),
                (b"x-ratelimit-remaining", str(remaining).encode()),
                (b"x-ratelimit-reset", str(ceil(time.time() - before_reset)).encode()),
            ]
        return headers


def _refusal(refused: Sequence[tuple[Charge, Verdict]]) -> RateLimitedError:
    for one, _ in refused:
        metrics.increment("rate_limit.refused", policy=one.policy)
    worst, verdict = max(refused, key=lambda pair: pair[1].retry_after_seconds)
    rate = worst.use.rate
    if worst.use.cost > rate.limit:
        detail = f"This request counts for {worst.use.cost}, and at most {rate.limit} are ever allowed at once."
    else:
        detail = f"At most {rate.limit} requests in {rate.period_seconds} seconds are allowed."
    return RateLimitedError(
        detail,
        retry_after_seconds=verdict.retry_after_seconds,
        violated_policies=[one.policy for one, _ in refused],
    )
