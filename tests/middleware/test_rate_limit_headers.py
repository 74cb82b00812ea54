"""The fields of the draft, read back by a parser of structured fields that is not ours (RFC 9651)."""

from __future__ import annotations

from typing import Any

import http_sf
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.errors import ConfigurationError, RateLimitedError
from svc_infra.middleware._limiter import Limited, Limiter, charge
from svc_infra.middleware.gcra import MAX_LIMIT, MAX_PERIOD_SECONDS, Rate
from svc_infra.middleware.http import RateLimitPolicy
from svc_infra.middleware.rate_limit_store import MemoryRateLimitStore

NAMES = st.text("abcXYZ019._-", min_size=1, max_size=64)
POLICIES = st.lists(
    st.tuples(
        NAMES,
        st.builds(Rate, st.integers(1, MAX_LIMIT), st.integers(1, MAX_PERIOD_SECONDS)),
        st.text(max_size=300),
        st.integers(0, MAX_LIMIT),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda policy: policy[:2],
)


@settings(deadline=None)
@given(policies=POLICIES)
async def test_every_policy_is_read_back_as_it_was_written(policies: Any) -> None:
    limited = Limited(Limiter(MemoryRateLimitStore()), "")
    charges = [charge(name, rate, cost, whom) for name, rate, whom, cost in policies]
    violated = None
    try:
        await limited.take(charges)
    except RateLimitedError as error:
        violated = error.members["violated-policies"]
    headers = dict(limited.headers())
    told: Any = http_sf.parse(headers[b"ratelimit-policy"], tltype="list")
    left: Any = http_sf.parse(headers[b"ratelimit"], tltype="list")
    assert [type(name) for name, _ in told] == [str] * len(policies)  # a String, and no Token
    assert [name for name, _ in told] == [f"{name}-{rate.limit}-{rate.period_seconds}" for name, rate, *_ in policies]
    for (name, policy), (same, limit), (_, rate, _, cost) in zip(told, left, policies, strict=True):
        assert (name, policy["q"], policy["w"]) == (same, rate.limit, rate.period_seconds)
        assert policy["pk"] == limit["pk"]
        assert len(policy["pk"]) == 16
        assert 0 <= limit["r"] <= rate.limit
        assert 0 <= limit["t"] <= rate.period_seconds
        if violated is None:
            assert limit["r"] == rate.limit - cost
        else:
            assert (name in violated) == (cost > rate.limit)
    assert int(headers[b"x-ratelimit-remaining"]) >= min(limit["r"] for _, limit in left)


@settings(deadline=None)
@given(name=st.text(max_size=80))
def test_a_name_is_one_that_a_header_can_carry_or_it_is_refused(name: str) -> None:
    try:
        prefix = RateLimitPolicy("1/s", name=name).prefix
    except ConfigurationError:
        return
    assert prefix == (name or "user")
    assert http_sf.parse(f'"{prefix}-1-1"'.encode(), tltype="list") == [(f"{prefix}-1-1", {})]


@settings(deadline=None)
@given(first=st.text(), second=st.text())
def test_two_who_are_counted_have_two_keys_of_one_length(first: str, second: str) -> None:
    one, other = (charge("user", Rate(1, 1), 1, "GET /", "user", whom).use.key for whom in (first, second))
    assert (one == other) == (first == second)
    assert len(one) == len(other) == len("user-1-1:") + 32
