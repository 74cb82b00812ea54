"""The retry schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.webhooks.retry import MAX_RETRY_AFTER_SECONDS, WebhookRetry


@pytest.mark.parametrize("attempts", range(1, 10))
def test_each_delay_is_the_schedules_plus_at_most_the_jitter(attempts: int) -> None:
    retry = WebhookRetry()
    planned = retry.schedule_seconds[attempts - 1]
    delay = retry.delay_seconds(attempts)
    assert delay is not None
    assert planned <= delay <= planned * 1.2


def test_after_the_last_attempt_there_is_no_delay() -> None:
    retry = WebhookRetry(schedule_seconds=(1.0, 2.0))
    assert retry.max_attempts == 3
    assert retry.delay_seconds(2) is not None
    assert retry.delay_seconds(3) is None


@given(st.floats(min_value=0, max_value=1e12))
def test_a_receiver_can_ask_for_a_longer_delay_up_to_a_day(asked: float) -> None:
    delay = WebhookRetry(schedule_seconds=(5.0,), jitter=0).delay_seconds(1, retry_after_seconds=asked)
    assert delay == max(5.0, min(asked, MAX_RETRY_AFTER_SECONDS))
