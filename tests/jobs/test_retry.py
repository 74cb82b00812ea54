"""What becomes of a failed attempt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.jobs import Cancel, Retry, Snooze
from svc_infra.jobs.job import DELAY_LIMIT_SECONDS
from svc_infra.jobs.retry import (
    MESSAGE_LIMIT_CHARS,
    STACK_LIMIT_FRAMES,
    Fate,
    RetryPolicy,
    Verdict,
    describe,
    fingerprint,
    verdict,
)


def raised(error: BaseException, *, depth: int = 0) -> BaseException:
    try:
        if depth:
            raised_deeper(error, depth)
        raise error
    except type(error) as caught:
        return caught


def raised_deeper(error: BaseException, depth: int) -> None:
    if depth == 0:
        raise error
    raised_deeper(error, depth - 1)


def test_an_error_is_described_by_its_type_its_message_and_the_innermost_frames() -> None:
    first, *frames = describe(raised(ValueError("no such thing"), depth=50)).splitlines()
    assert first == "ValueError: no such thing"
    assert len(frames) == STACK_LIMIT_FRAMES
    assert all("at raised_deeper (" in frame for frame in frames)


def test_a_description_is_bounded_and_never_fails() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(OddError()) == "OddError: <exception str() failed>"
    assert describe(ValueError()) == "ValueError: no message"
    assert len(describe(ValueError("x" * 10_000))) <= MESSAGE_LIMIT_CHARS + len("ValueError: ")


@given(st.floats(allow_nan=False) | st.none())
def test_retry_bounds_the_delay_that_a_handler_chooses(seconds: float | None) -> None:
    decided = verdict(Retry("later", after_seconds=seconds), 1)
    assert (decided.error, decided.fate) == ("Retry: later", Fate.RETRY)
    assert (
        decided.delay_seconds is None if seconds is None else 0 <= (decided.delay_seconds or 0) <= DELAY_LIMIT_SECONDS
    )


def decided(error: BaseException, attempt: int = 1, policy: RetryPolicy | None = None) -> tuple[Fate, float | None]:
    found = verdict(error, attempt, policy)
    return found.fate, found.delay_seconds


def test_without_a_policy_the_queue_chooses_the_delay() -> None:
    assert verdict(ValueError("x"), 3) == Verdict("ValueError: x", fingerprint=fingerprint(ValueError("x")))


def test_a_function_is_given_the_error_and_the_attempt_and_may_give_up() -> None:
    seen: list[object] = []

    def policy(error: BaseException, attempt: int) -> float | None:
        seen.append((error, attempt))
        return None if attempt == 2 else 7.0

    error = ValueError("x")
    assert decided(error, 1, policy) == (Fate.RETRY, 7.0)
    assert decided(error, 2, policy) == (Fate.DEAD, None)
    assert seen == [(error, 1), (error, 2)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), (Fate.RETRY, 2.0)),  # the nearest class decides
        (ConnectionRefusedError(), (Fate.RETRY, 30.0)),
        (FileNotFoundError(), (Fate.DEAD, None)),
        (ValueError(), (Fate.RETRY, None)),  # nothing is said of it: the job's own backoff
    ],
)
def test_a_mapping_decides_by_the_errors_type(error: Exception, expected: tuple[Fate, float | None]) -> None:
    policy: RetryPolicy = {OSError: None, ConnectionError: 30.0, ConnectionResetError: 2.0}
    assert decided(error, 1, policy) == expected


def test_a_policy_that_fails_is_logged_and_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    assert decided(ValueError("x"), 1, lambda error, attempt: 1 / 0) == (Fate.RETRY, None)
    assert caplog.messages == ["job.retry_policy_failed"]


def test_what_a_handler_asks_for_goes_before_the_policy() -> None:
    def give_up(error: BaseException, attempt: int) -> None:
        return None

    assert decided(Retry(after_seconds=5), 1, give_up) == (Fate.RETRY, 5)
    assert decided(Cancel("gone"), 1, give_up) == (Fate.CANCEL, None)
    assert decided(Snooze(60), 1, give_up) == (Fate.SNOOZE, 60)
    assert (str(Cancel("gone")), str(Snooze(1, "busy"))) == ("gone", "busy")


def test_errors_of_one_type_from_one_place_have_one_fingerprint() -> None:
    marks = {fingerprint(raised(ValueError(f"customer {number}"))) for number in range(3)}
    assert len(marks) == 1
    assert len(marks.pop()) == 16


def test_another_type_or_another_place_has_another_fingerprint() -> None:
    marks = [
        fingerprint(raised(ValueError("x"))),
        fingerprint(raised(TypeError("x"))),
        fingerprint(raised(ValueError("x"), depth=1)),
        fingerprint(ValueError("x")),
    ]
    assert len(set(marks)) == 4
