"""The script for Redis and Valkey, and the function for memory, against a bucket of tokens in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svc_infra.middleware.gcra import MAX_LIMIT, MAX_PERIOD_SECONDS, Rate, Use, decide

MICROSECONDS = 1_000_000
START = 1_790_000_000 * MICROSECONDS
LAST_DAY = 2**53 - (MAX_PERIOD_SECONDS + 1) * MICROSECONDS  # some time in the year 2254

# The server's clock is replaced by the last argument, and keys do not expire while that one stands still.
CLOCK = """
local server, clock = redis, table.remove(ARGV)
local redis = {call = function(command, key, value)
  if command == 'TIME' then return {string.sub(clock, 1, -7), string.sub(clock, -6)} end
  if command == 'SET' then return server.call(command, key, value) end
  return server.call(command, key)
end}
"""


@dataclass
class Bucket:
    """Tokens of which `limit` are filled in each microsecond, and a use takes a period's microseconds for each cost."""

    rate: Rate
    level: int = field(init=False)
    time: int = START

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> int:
        return self.rate.limit * self.rate.period_seconds * MICROSECONDS

    def price(self, cost: int) -> int:
        return cost * self.rate.period_seconds * MICROSECONDS

    def fill(self, now: int) -> None:
        self.level = min(self.capacity, self.level + (now - self.time) * self.rate.limit)
        self.time = now


class Reference:
    """All buckets, of which a request takes from each or from none."""

    def __init__(self, rates: Sequence[Rate]) -> None:
        self.buckets = [Bucket(rate) for rate in rates]

    def take(self, now: int, uses: Sequence[tuple[int, int]]) -> bool:
        for bucket in self.buckets:
            bucket.fill(now)
        allowed = all(self.buckets[which].price(cost) <= self.buckets[which].level for which, cost in uses)
        for which, cost in uses if allowed else ():
            self.buckets[which].level -= self.buckets[which].price(cost)
        return allowed

    def remaining(self, which: int) -> int:
        return self.buckets[which].level // self.buckets[which].price(1)


RATES = st.builds(
    Rate,
    st.one_of(st.integers(1, 12), st.integers(1, MAX_LIMIT)),
    st.one_of(st.integers(1, 60), st.integers(1, MAX_PERIOD_SECONDS)),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Rate], list[tuple[int, list[tuple[int, int]]]]]:
    """Rates, and requests: the time since the one before in microseconds, and what each uses of which rates."""
    rates = draw(st.lists(RATES, min_size=1, max_size=3))
    interval = max(1, min(rate.period_seconds * MICROSECONDS // rate.limit for rate in rates))
    steps = st.one_of(st.just(0), st.integers(0, 3 * interval), st.sampled_from([interval, interval + 1]))
    costs = st.one_of(st.integers(0, 3), st.sampled_from([rate.limit for rate in rates]), st.integers(0, MAX_LIMIT))
    which = st.lists(st.sampled_from(range(len(rates))), min_size=1, unique=True)
    uses = which.flatmap(lambda chosen: st.tuples(*[st.tuples(st.just(one), costs) for one in chosen]).map(list))
    return rates, draw(st.lists(st.tuples(steps, uses), min_size=1, max_size=25))


@settings(deadline=None, max_examples=300)
@given(history=histories())
def test_memory_admits_what_the_reference_does(history: Any) -> None:
    rates, requests = history
    reference, states, now = Reference(rates), [0] * len(rates), START
    for step, uses in requests:
        now += step
        taken = [Use(str(which), rates[which], cost) for which, cost in uses]
        verdicts = decide([states[which] for which, _ in uses], now * 1000, taken)
        assert all(verdict.allowed for verdict in verdicts) == reference.take(now, uses)
        for (which, _), verdict in zip(uses, verdicts, strict=True):
            states[which] = verdict.state
            assert verdict.remaining == reference.remaining(which)


@pytest.fixture
def script(valkey_url: str) -> Any:
    with redis.Redis.from_url(valkey_url) as client:
        text = (files("svc_infra.middleware") / "gcra.lua").read_text()
        yield client, client.register_script(CLOCK + text)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), start=st.sampled_from([START, LAST_DAY]))
def test_the_script_admits_what_the_reference_does_to_the_microsecond(script: Any, history: Any, start: int) -> None:
    client, run = script
    client.flushall()
    rates, requests = history
    reference, now = Reference(rates), start
    for bucket in reference.buckets:
        bucket.time = start
    for step, uses in requests:
        now = min(now + step, LAST_DAY)
        taken = [Use(str(which), rates[which], cost) for which, cost in uses]
        before = {use.key: client.get(use.key) for use in taken}
        arguments = [argument for use in taken for argument in in_microseconds(use)]
        answered, *held = run(keys=[use.key for use in taken], args=[*arguments, now])
        assert answered == now
        states = [
            (whole * use.rate.limit + part) * 1000
            for use, whole, part in zip(taken, held[::2], held[1::2], strict=True)
        ]
        allowed = reference.take(now, uses)
        assert all(verdict.allowed for verdict in decide(states, now * 1000, taken)) == allowed
        for (which, _), use in zip(uses, taken, strict=True):
            kept = client.get(use.key)
            if not allowed:
                assert kept == before[use.key]
            else:
                bucket = reference.buckets[which]
                whole, part = map(int, kept.split(b":"))
                assert (whole - now) * use.rate.limit + part == bucket.capacity - bucket.level


@pytest.mark.parametrize(
    "rate", [Rate(1, 1), Rate(3, 1), Rate(7, 1), Rate(13, 60), Rate(11, MAX_PERIOD_SECONDS)], ids=str
)
def test_after_a_burst_each_next_use_passes_at_its_microsecond_and_not_one_before(script: Any, rate: Rate) -> None:
    client, run = script
    period = rate.period_seconds * MICROSECONDS

    def admitted(now: int, cost: int = 1) -> bool:
        before = client.get("a")
        run(keys=["a"], args=[*in_microseconds(Use("a", rate, cost)), now])
        return bool(client.get("a") != before)

    assert admitted(START, rate.limit)
    for number in range(1, 4 * rate.limit):
        due = START + -(-number * period // rate.limit)
        assert not admitted(due - 1)
        assert admitted(due)


def test_a_server_whose_clock_went_back_counts_the_key_as_used_up_and_recovers(script: Any) -> None:
    client, run = script
    arguments, hour = in_microseconds(Use("a", Rate(2, 60))), 3600 * MICROSECONDS

    def admitted(now: int) -> bool:
        before = client.get("a")
        run(keys=["a"], args=[*arguments, now])
        return bool(client.get("a") != before)

    assert admitted(START)
    assert not admitted(START - hour)  # not for longer than a period, but as if it had just been used up
    assert not admitted(START - 1)
    assert admitted(START)
    assert not admitted(START)
    assert admitted(START + 30 * MICROSECONDS)


def in_microseconds(use: Use) -> list[int]:
    limit, period = use.rate.limit, use.rate.period_seconds * MICROSECONDS
    return [limit, period, *divmod(min(use.cost, limit + 1) * period, limit)]
