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
CHANGES = {  # of the clocks in 2026, in UTC; for zones without any, some moment
    "Europe/Berlin": [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)],
    "America/Sao_Paulo": [datetime(2026, 6, 15, tzinfo=UTC)],
    "UTC": [datetime(2026, 3, 29, 1, tzinfo=UTC)],
}
EDGES = [(ZoneInfo(zone), change) for zone, changes in CHANGES.items() for change in changes]
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


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(EDGES),
    st.sampled_from([*EXPRESSIONS, None]),
    st.integers(60, 100_000),
    st.integers(-3 * 3600, 3 * 3600),
    st.integers(0, 2 * 86_400),
    st.integers(1, 50),
)
def test_all_ways_of_asking_agree_from_anywhere_around_a_change_of_the_clocks(
    edge: tuple[ZoneInfo, datetime], expression: str | None, step: int, second: int, length: int, limit: int
) -> None:
    zone, change = edge
    times: Times = Interval(timedelta(seconds=step)) if expression is None else Cron(expression, zone)
    after = change + timedelta(seconds=second)
    until = after + timedelta(seconds=length)
    begin = change - DAY
    walked = times.latest(begin, until, 10_000)
    assert all(one < other for one, other in pairwise(walked))
    expected = [moment for moment in walked if moment > after]
    assert times.latest(after, until, limit) == expected[-limit:]
    assert times.count(after, until, limit) == min(len(expected), limit)
    assert times.following(after) == (expected[0] if expected else times.following(until))
    stepped: list[datetime] = []
    following = times.following(begin)
    while following is not None and following <= until:
        stepped.append(following)
        following = times.following(following)
    assert stepped == walked


def test_a_single_time_follows_until_it_is_there() -> None:
    times = Once(START)
    assert (times.following(START - MINUTE), times.following(START)) == (START, None)
    assert times.latest(START - MINUTE, START) == [START]
    assert times.latest(START, START + MINUTE) == times.latest(START - DAY, START - MINUTE) == []
    assert (times.count(START - DAY, START, 5), times.count(START, START + DAY, 5)) == (1, 0)


STARS: dict[str, Callable[[datetime], bool]] = {
    "*/5 * * * *": lambda face: face.minute % 5 == 0,
    "*/15 3 * * *": lambda face: face.minute % 15 == 0 and face.hour == 3,
    "0 */2 * * *": lambda face: face.minute == 0 and face.hour % 2 == 0,
    "7 * * * *": lambda face: face.minute == 7,
}


@settings(deadline=None)
@given(st.sampled_from(sorted(STARS)), st.sampled_from(EDGES))
def test_a_star_names_every_minute_that_the_clock_shows(expression: str, edge: tuple[ZoneInfo, datetime]) -> None:
    zone, change = edge
    minutes = [change - DAY + number * MINUTE for number in range(1, 2 * 24 * 60 + 1)]
    named = [minute for minute in minutes if STARS[expression](minute.astimezone(zone))]
    assert Cron(expression, zone).latest(change - DAY, minutes[-1], 10_000) == named


@settings(deadline=None)
@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from(EDGES))
def test_a_time_of_day_comes_once_a_day_or_right_after_the_hour_that_is_skipped(
    hour: int, minute: int, edge: tuple[ZoneInfo, datetime]
) -> None:
    zone, change = edge
    minutes = [change - 2 * DAY + number * MINUTE for number in range(4 * 24 * 60)]
    faces = {moment: moment.astimezone(zone).replace(tzinfo=None) for moment in minutes}
    dates = sorted({face.date() for face in faces.values()})[1:-1]
    wanted = [datetime(date.year, date.month, date.day, hour, minute) for date in dates]  # noqa: DTZ001
    first = [next(moment for moment in minutes if faces[moment] >= face) for face in wanted]
    found = Cron(f"{minute} {hour} * * *", zone).latest(minutes[0] - MINUTE, minutes[-1], 100)
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
