"""What the rate limits of one request are: who is counted, what was decided, and what the answer says about it."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address
from math import ceil
from typing import Literal, NamedTuple, Never

from starlette.types import Scope

from svc_infra.errors import RateLimitedError, SvcInfraError, UnavailableError
from svc_infra.middleware._scope import route_template
from svc_infra.middleware.gcra import Rate, Use, Verdict
from svc_infra.middleware.problem import Headers
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore, RateLimitStore
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
    """One use as a policy's, and what answers say about it as far as that is always the same.

    Attributes:
        policy: The name that the answer shows.
        use: Of a key that only a hash tells apart from others.
        told: The policy, as an item of `RateLimit-Policy`.
        begin: An item of `RateLimit` up to what is left.
        end: The same from behind the seconds on.
        policy_header: `RateLimit-Policy` where it is the only one.
        limit_header: `X-RateLimit-Limit`.
    """

    policy: str
    use: Use
    told: str
    begin: str
    end: str
    policy_header: tuple[bytes, bytes]
    limit_header: tuple[bytes, bytes]


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
    key = b64encode(digest).decode()
    told = f'"{policy}";q={rate.limit};w={rate.period_seconds};pk=:{key}:'
    return Charge(
        policy,
        Use(f"{policy}:{digest.hex()}", rate, cost),
        told,
        f'"{policy}";r=',
        f";pk=:{key}:",
        (b"ratelimit-policy", told.encode()),
        (b"x-ratelimit-limit", str(rate.limit).encode()),
    )


def network(peer: str) -> str:
    """A peer's address, or its /64 network under IPv6, of which one client has all."""
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

    Attributes:
        memory: The store where asking it takes no waiting and it cannot fail; else None: use `take`.
    """

    def __init__(
        self, store: RateLimitStore, *, on_outage: OnOutage = "allow", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self.on_outage = on_outage
        self.memory = store if type(store) is MemoryRateLimitStore else None
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

    def take_now(self, charges: Sequence[Charge]) -> bool:
        """Charge the request, unless it has been, where that takes no waiting; all charges or none.

        Returns:
            Whether that is so; if not, use `take`.

        Raises:
            RateLimitedError: One is refused.
        """
        memory = self._limiter.memory
        if memory is None:
            return False
        charged = self._charged
        if len(charges) == 1 and not charged:
            (one,) = charges
            use = one.use
            verdict = memory.take_one(use)
            charged[use.key] = one, verdict
            if not verdict.allowed:
                self._refuse([(one, verdict)])
        elif new := self._not_yet(charges):
            self._note(new, memory.take_now([one.use for one in new]))
        return True

    async def take(self, charges: Sequence[Charge]) -> None:
        """Charge the request, unless it has been; all charges or none.

        Raises:
            RateLimitedError: One is refused.
            UnavailableError: The store is down and requests are denied then.
        """
        if self.take_now(charges) or not (new := self._not_yet(charges)):
            return
        self._charged.update({one.use.key: (one, None) for one in new})
        try:
            verdicts = await self._limiter.take([one.use for one in new])
        except UnavailableError as error:
            self.refusal = error
            raise
        if verdicts is not None:
            self._note(new, verdicts)

    def headers(self) -> Headers:
        """What the answer says: the fields of draft-ietf-httpapi-ratelimit-headers-10, and those that are usual.

        The usual ones have room for one limit: the one that leaves the least.
        """
        charged = self._charged
        if not charged:
            return []
        if len(charged) == 1:
            ((tightest, verdict),) = charged.values()
            if verdict is None:
                return [tightest.policy_header]
            remaining, more_after_seconds, reset_after_seconds = verdict.left()
            policy_header = tightest.policy_header
            limits = f"{tightest.begin}{remaining};t={more_after_seconds}{tightest.end}"
        else:
            policy_header = b"ratelimit-policy", ", ".join([one.told for one, _ in charged.values()]).encode()
            known = [(one, verdict) for one, verdict in charged.values() if verdict is not None]
            if not known:
                return [policy_header]
            left = [(one, *verdict.left()) for one, verdict in known]
            limits = ", ".join([f"{one.begin}{r};t={t}{one.end}" for one, r, t, _ in left])
            tightest, verdict = min(known, key=_tightness)
            remaining, _, reset_after_seconds = verdict.left()
        return [
            policy_header,
            (b"ratelimit", limits.encode()),
            tightest.limit_header,
            (b"x-ratelimit-remaining", b"%d" % remaining),
            (b"x-ratelimit-reset", b"%d" % ceil(time.time() + reset_after_seconds)),
        ]

    def _not_yet(self, charges: Sequence[Charge]) -> list[Charge]:
        return [one for one in {one.use.key: one for one in charges}.values() if one.use.key not in self._charged]

    def _note(self, charges: Sequence[Charge], verdicts: Sequence[Verdict]) -> None:
        decided = list(zip(charges, verdicts, strict=True))
        self._charged.update({one.use.key: (one, verdict) for one, verdict in decided})
        if refused := [(one, verdict) for one, verdict in decided if not verdict.allowed]:
            self._refuse(refused)

    def _refuse(self, refused: Sequence[tuple[Charge, Verdict]]) -> Never:
        self.refusal = _refusal(refused)
        raise self.refusal


def _tightness(decided: tuple[Charge, Verdict]) -> tuple[bool, int, float, int]:
    one, verdict = decided
    remaining, _, reset_after_seconds = verdict.left()
    return verdict.allowed, remaining, -reset_after_seconds, one.use.rate.limit


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
