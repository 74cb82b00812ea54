from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.errors import ConfigurationError
from svc_infra.middleware.gcra import MAX_LIMIT, MAX_PERIOD_SECONDS, Rate, gcra

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "limit", "seconds"),
    [
        ("100/minute", 100, 60),
        ("5/s", 5, 1),
        (" 1000 / 15 minutes ", 1000, 900),
        ("1/2h", 1, 7200),
        ("10/day", 10, 86400),
        ("7/hours", 7, 3600),
    ],
)
def test_rates_are_read(text: str, limit: int, seconds: int) -> None:
    assert Rate.parse(text) == Rate(limit, seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "0/minute",
        "5/0 s",
        "-1/minute",
        "1.5/s",
        "100/fortnight",
        "100 per minute",
        "٣/s",
        "1/s/s",
        "9" * 10 + "/s",
    ],
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="100/minute"):
        Rate.parse(text)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_rate_or_a_configuration_error(text: str) -> None:
    try:
        rate = Rate.parse(text)
    except ConfigurationError:
        return
    assert rate.limit > 0
    assert rate.period_seconds > 0


RATES = st.builds(Rate, st.integers(1, 1000), st.integers(1, 86400))


@settings(deadline=None)
@given(rate=RATES, steps=st.lists(st.integers(0, 20 * SECOND), max_size=200), start=st.integers(0, 10**18))
def test_no_sequence_admits_more_than_the_burst_and_the_rate(rate: Rate, steps: list[int], start: int) -> None:
    """In every window of length t at most `limit + limit * t / period` are admitted, to the last nanosecond."""
    state, now, admitted = 0, start, []
    for step in steps:
        now += step
        verdict = gcra(state, now, rate)
        state = verdict.state
        if verdict.allowed:
            admitted.append(now)
    for first in range(0, len(admitted), 7):
        for last in range(first, len(admitted)):
            window = admitted[last] - admitted[first]
            allowance = rate.limit * rate.period_seconds * SECOND + rate.limit * window
            assert (last - first + 1) * rate.period_seconds * SECOND <= allowance


@settings(deadline=None)
@given(rate=RATES, start=st.integers(0, 10**18))
def test_exactly_the_limit_is_admitted_at_once_and_the_next_after_the_wait(rate: Rate, start: int) -> None:
    state = 0
    for left in reversed(range(rate.limit)):
        verdict = gcra(state, start, rate)
        state = verdict.state
        assert (verdict.allowed, verdict.remaining, verdict.retry_after_seconds) == (True, left, 0)
    refused = gcra(state, start, rate)
    assert (refused.allowed, refused.remaining, refused.state) == (False, 0, state)
    assert refused.retry_after_seconds == pytest.approx(rate.period_seconds / rate.limit)
    assert refused.reset_after_seconds == pytest.approx(rate.period_seconds)
    interval = -(-rate.period_seconds * SECOND // rate.limit)
    assert not gcra(state, start + interval - 1, rate).allowed
    assert gcra(state, start + interval, rate).allowed


def test_what_was_not_used_comes_back_but_never_more_than_the_limit() -> None:
    rate = Rate(3, 60)
    state = gcra(0, 0, rate).state
    assert gcra(state, 3600 * SECOND, rate).remaining == 2


SECONDS = {"s": 1, "second": 1, "m": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
SPACE = st.sampled_from(["", " ", "\t"])


@settings(deadline=None)
@given(
    limit=st.integers(0, 10**10),
    count=st.none() | st.integers(0, 10**10),
    unit=st.sampled_from(sorted(SECONDS)),
    plural=st.sampled_from(["", "s"]),
    spaces=st.tuples(SPACE, SPACE, SPACE, SPACE),
)
def test_a_rate_means_what_it_says_or_is_refused_for_being_out_of_bounds(
    limit: int, count: int | None, unit: str, plural: str, spaces: tuple[str, ...]
) -> None:
    before, middle, after, end = spaces
    text = f"{before}{limit}{middle}/{after}{'' if count is None else count}{unit}{plural}{end}"
    period = (1 if count is None else count) * SECONDS[unit]
    if 0 < limit <= MAX_LIMIT and 0 < period <= MAX_PERIOD_SECONDS:
        assert Rate.parse(text) == Rate(limit, period)
    else:
        with pytest.raises(ConfigurationError, match="100/minute"):
            Rate.parse(text)


def test_a_clock_that_went_back_leaves_a_key_used_up_and_never_for_longer_than_a_period() -> None:
    rate, day = Rate(2, 60), 86_400 * SECOND
    state = gcra(0, day, rate).state
    refused = gcra(state, 0, rate)
    assert (refused.allowed, refused.retry_after_seconds, refused.reset_after_seconds) == (False, 30, 60)
