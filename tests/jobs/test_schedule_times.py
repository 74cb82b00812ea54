"""Points in time: the same ones from wherever one asks, through every change of the clocks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.jobs.schedules.times import Cron, Interval, Once, Times
from tests.jobs.working import START

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
EDGES = [  # within two days of a change of the clocks in one of the zones
    datetime(2026, month, day, tzinfo=UTC)
    for month, day in ((3, 7), (3, 28), (4, 3), (10, 2), (10, 24), (10, 31), (6, 15))
]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]
EXPRESSIONS = [
    "*/5 * * * *",
    "*/15 3 * * *",
    "0,30 1,2,3 * * *",
    "30 2 * * *",
    "0 */2 * * *",
    "15 1 * * *",
    "45 2 * * SUN",
    "0 3 31 * *",
    "0 0 29 2 *",
    "10,40 30 2 * * *",
    "*/20 59 1 * * *",
]

TIMES = st.one_of(
    st.builds(Cron, st.sampled_from(EXPRESSIONS), st.sampled_from([ZoneInfo(zone) for zone in ZONES])),
    st.builds(Interval, st.floats(60, 100_000).map(lambda seconds: timedelta(seconds=seconds))),
    st.builds(Once, st.sampled_from(EDGES).map(lambda day: day + DAY)),
)


@settings(deadline=None)
@given(TIMES, st.sampled_from(EDGES), st.integers(0, 3 * 86_400), st.integers(0, 3 * 86_400), st.integers(1, 50))
def test_all_ways_of_asking_agree(times: Times, day: datetime, second: int, length: int, limit: int) -> None:
    after = day + timedelta(seconds=second)
    until = after + timedelta(seconds=length)
    walked, moment = [], after
    while (following := times.following(moment)) is not None and following <= until:
        assert following > moment
        walked.append(following)
        moment = following
    assert times.latest(after, until, limit) == walked[-limit:]
    assert times.count(after, until, limit) == min(len(walked), limit)
    for one, other in pairwise(walked):
        between = one + (other - one) / 2  # from anywhere in between, the following one is the same
        assert times.following(between) == other


STARS: dict[str, Callable[[datetime], bool]] = {
    "*/5 * * * *": lambda face: face.minute % 5 == 0,
    "*/15 3 * * *": lambda face: face.minute % 15 == 0 and face.hour == 3,
    "0 */2 * * *": lambda face: face.minute == 0 and face.hour % 2 == 0,
    "7 * * * *": lambda face: face.minute == 7,
}


@settings(deadline=None)
@given(st.sampled_from(sorted(STARS)), st.sampled_from(ZONES), st.sampled_from(EDGES))
def test_a_star_names_every_minute_that_the_clock_shows(expression: str, zone: str, day: datetime) -> None:
    minutes = [day + number * MINUTE for number in range(1, 3 * 24 * 60 + 1)]
    named = [minute for minute in minutes if STARS[expression](minute.astimezone(ZoneInfo(zone)))]
    assert Cron(expression, ZoneInfo(zone)).latest(day, minutes[-1], 10_000) == named


@settings(deadline=None)
@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from(ZONES), st.sampled_from(EDGES))
def test_a_time_of_day_comes_once_a_day_or_right_after_the_hour_that_is_skipped(
    hour: int, minute: int, zone: str, day: datetime
) -> None:
    minutes = [day + number * MINUTE for number in range(3 * 24 * 60)]
    faces = {moment: moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in minutes}
    dates = sorted({face.date() for face in faces.values()})[1:-1]
    wanted = [datetime(date.year, date.month, date.day, hour, minute) for date in dates]  # noqa: DTZ001
    first = [next(moment for moment in minutes if faces[moment] >= face) for face in wanted]
    found = Cron(f"{minute} {hour} * * *", ZoneInfo(zone)).latest(day - MINUTE, minutes[-1], 100)
    assert [moment for moment in found if faces[moment].date() in dates] == first


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]),  # 02:30 is skipped: at 03:00
        ("0 4 * * *", ["2026-03-28T03:00", "2026-03-29T02:00", "2026-03-30T02:00"]),
    ],
)
def test_a_time_that_the_clocks_skip_happens_right_after(expression: str, expected: list[str]) -> None:
    assert three(expression, datetime(2026, 3, 28, tzinfo=UTC)) == expected


def test_a_time_that_the_clocks_repeat_happens_once() -> None:
    assert three("30 2 * * *", datetime(2026, 10, 24, tzinfo=UTC)) == [
        "2026-10-24T00:30",
        "2026-10-25T00:30",
        "2026-10-26T01:30",
    ]


def three(expression: str, moment: datetime) -> list[str]:
    times, found = Cron(expression, ZoneInfo("Europe/Berlin")), []
    for _ in range(3):
        following = times.following(moment)
        assert following is not None
        moment = following
        found.append(moment.isoformat()[:16])
    return found


def test_a_pause_of_years_costs_no_walk_through_them() -> None:
    times = Cron("* * * * * *", UTC)
    assert times.latest(START - 3650 * DAY, START) == [START]
    assert Cron("0 0 29 2 *", UTC).latest(START - 3650 * DAY, START) == [datetime(2024, 2, 29, tzinfo=UTC)]
