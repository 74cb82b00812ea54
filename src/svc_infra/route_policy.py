"""How a route says who may call it.

A policy is declared by what enforces it: a dependency of the route, or its endpoint. The declaration is the attribute
`route_policy` of that function or object. `svc_infra.security.access` checks that every route has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PUBLIC = "public"


def declares(policy: str) -> Callable[[T], T]:
    """A decorator that says which policy a dependency, an endpoint or a mounted app enforces.

    Args:
        policy: A few words for a person, such as `signature of the provider`; `public` where everybody may call.
    """

    def declaring(enforcer: T) -> T:
        enforcer.route_policy = policy  # type: ignore[attr-defined]
        return enforcer

    return declaring


def declared_by(enforcer: Any) -> str | None:
    """What it declares, or None."""
    policy = getattr(enforcer, "route_policy", None)
    return policy if isinstance(policy, str) else None
