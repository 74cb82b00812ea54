"""Rate limits of single routes, as dependencies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from fastapi import params
from fastapi.requests import HTTPConnection

from svc_infra.errors import ConfigurationError
from svc_infra.middleware._limiter import KEY_RATE, LIMITED, Charge, Limited, charge, network
from svc_infra.middleware._scope import client_ip
from svc_infra.middleware.gcra import Rate
from svc_infra.obs.context import current
from svc_infra.wiring import wiring_of

T = TypeVar("T")

Per = Literal["user", "tenant", "api_key", "ip"] | Callable[[HTTPConnection], str | Awaitable[str | None] | None]
"""Who is counted: one of the four, or a function of the request, plain or async, that gives a text."""
Override = Callable[[str], Rate | str | Awaitable[Rate | str | None] | None]
"""Gives a counted user, tenant, key or text a rate of its own, or None for the policy's; plain or async."""
Cost = int | Callable[[HTTPConnection], int | Awaitable[int]]
"""How many requests a request counts for: a number, or a function of the request, plain or async."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOTED_IN = {"user": "principal_id", "tenant": "tenant_id", "api_key": "api_key_id"}


class IdentifiesUser(Protocol):
    """Verifies who sends a request and notes it in the context; the room that knows users provides it."""

    async def __call__(self, connection: HTTPConnection) -> object:
        """Note the user; do nothing for a request without a credential."""
        ...


class IdentifiesTenant(Protocol):
    """Verifies for which tenant a request acts and notes it in the context; the room that knows tenants provides it."""

    async def __call__(self, connection: HTTPConnection) -> object:
        """Note the tenant; do nothing for a request that has none."""
        ...


@dataclass(frozen=True, slots=True)
class RateLimitPolicy:
    """One limit among several of a route; the fields are as for `rate_limit`."""

    rate: str
    per: Per = "user"
    name: str | None = None
    override: Override | None = None
    default: Rate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", Rate.parse(self.rate))
        if not callable(self.per) and self.per not in (*_NOTED_IN, "ip"):
            raise ConfigurationError(f"A rate limit per {self.per!r}: use user, tenant, api_key, ip or a function.")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name!r} names no rate limit: use letters, digits, dots and dashes.")

    @property
    def prefix(self) -> str:
        """What the policy's name begins with."""
        return self.name or (self.per if isinstance(self.per, str) else "custom")


def rate_limit(
    *limits: str | RateLimitPolicy,
    per: Per = "user",
    cost: Cost = 1,
    name: str | None = None,
    override: Override | None = None,
) -> params.Depends:
    """A dependency that refuses what is more than a rate allows (429), inside of a `RateLimitMiddleware`.

    Counts each route by itself, and users, tenants and keys only as they were verified: by the rooms of this library
    when the limit needs it, or by a dependency that stands before this one and notes them in
    `svc_infra.obs.context`. Who has no key or tenant is counted as a user, and who is no user by address. An API key
    with a rate of its own has that instead, once for all routes that count keys.

    Args:
        *limits: The rates, such as `10/minute`; they are asked together, and either all count the request or none does.
        per: Who is counted under each of the rates.
        cost: How many requests this one counts for; 0 counts nothing. What costs more than a rate is always refused.
        name: Makes all routes that use the name count together.
        override: The rate of one who is counted, in place of the given one.

    Raises:
        ConfigurationError: A rate cannot be understood, or two cannot be told apart. When a request comes: there is no
            `RateLimitMiddleware`, or the cost is no number from 0.
    """
    policies = [RateLimitPolicy(one, per, name, override) if isinstance(one, str) else one for one in limits]
    if not policies:
        raise ConfigurationError("A rate limit without a rate: give one, such as 10/minute.")
    if len({(one.prefix, one.default) for one in policies}) < len(policies):
        raise ConfigurationError("Two rate limits of a route have the same rate and name: give one another name.")

    async def check(connection: HTTPConnection) -> None:
        if LIMITED not in connection.scope:
            raise ConfigurationError("`rate_limit` needs the middleware: app.add_middleware(RateLimitMiddleware).")
        limited: Limited | None = connection.scope[LIMITED]
        if limited is None:
            return
        uses = cost if isinstance(cost, int) else await _asked(cost, connection)
        if uses < 0:
            raise ConfigurationError(f"A request cannot cost {uses}: use a number from 0.")
        await limited.take([await _charge(policy, uses, connection, limited) for policy in policies])

    return params.Depends(check)


async def _charge(policy: RateLimitPolicy, cost: int, connection: HTTPConnection, limited: Limited) -> Charge:
    route = "" if policy.name is not None else limited.route(connection.scope)
    rate = policy.default
    if callable(policy.per):
        kind, whom = getattr(policy.per, "__qualname__", "custom"), await _asked(policy.per, connection)
    else:
        await _identify(policy.per, connection)
        kind, whom = policy.per, getattr(current(), _NOTED_IN.get(policy.per, ""), "")
    if whom:
        if policy.override is not None and (own := await _asked(policy.override, whom)) is not None:
            rate = own if isinstance(own, Rate) else Rate.parse(own)
        elif policy.per == "api_key" and (of_key := connection.scope.get(KEY_RATE)) is not None:
            return charge("api_key", Rate.parse(of_key), cost, "", kind, whom)  # the key's: whatever the route
        return charge(policy.prefix, rate, cost, route, kind, whom)
    if user := "" if policy.per == "ip" or callable(policy.per) else current().principal_id:
        return charge(policy.prefix, rate, cost, route, "user", user)
    return charge(policy.prefix, rate, cost, route, "ip", network(client_ip(connection.scope)))


async def _identify(per: str, connection: HTTPConnection) -> None:
    if per == "ip":
        return
    wiring = wiring_of(connection.app)
    if per == "tenant" and not current().tenant_id and wiring.has(IdentifiesTenant):
        await wiring.get(IdentifiesTenant)(connection)
    if not current().principal_id and wiring.has(IdentifiesUser):
        await wiring.get(IdentifiesUser)(connection)


async def _asked(function: Callable[[Any], T | Awaitable[T]], argument: Any) -> T:
    answer = function(argument)
    return await answer if inspect.isawaitable(answer) else answer
