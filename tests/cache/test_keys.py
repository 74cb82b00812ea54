"""Keys: distinct arguments, distinct keys; the same arguments, the same key, in every process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from svc_infra.cache.keys import MAX_KEY_CHARACTERS, Arguments, Template, shortened, text_of
from svc_infra.errors import ConfigurationError


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Point:
    x: int
    y: Any = 0


@dataclass(frozen=True)
class Place:
    x: int
    y: Any = 0


class Model(BaseModel):
    x: int


class Record(msgspec.Struct):
    x: int


class Pair(NamedTuple):
    x: int
    y: int


class Name(str):
    __slots__ = ()


ONE_OF_EACH: list[Any] = [
    None, True, False, 0, 1, 1.0, -1, "1", "", b"1", "None", "True", (), (1,), (1, 2), ((1,), 2), [1], [], {}, {1: 2},
    {2: 1}, {"1": 2}, set(), {1}, frozenset(), frozenset([1]), Colour.RED, Level.LOW, Point(1), Point(1, 1), Place(1),
    Model(x=1), Record(1), Pair(1, 2), Name("1"), UUID(int=1), str(UUID(int=1)), Decimal(1), Decimal("1.0"),
    date(2030, 1, 1), datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1), timedelta(1), "2030-01-01",  # noqa: DTZ001
    PurePosixPath("1"), "(1,)", "[1]", 2**70, float("inf"), "inf",
]  # fmt: skip

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = st.recursive(
    plain | st.uuids() | st.decimals(allow_nan=False), lambda inner: st.tuples(inner, inner), max_leaves=4
)
values = st.recursive(
    plain | st.uuids() | st.decimals(allow_nan=False) | st.datetimes() | st.sampled_from(Colour),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.frozensets(hashable, max_size=3)
        | st.builds(Point, st.integers(), inner)
    ),
    max_leaves=6,
)


def shape(value: Any) -> Any:
    """A value with the types in it, so that 1, 1.0 and True are three things."""
    kind = type(value)
    if isinstance(value, list | tuple):
        return (kind, tuple(map(shape, value)))
    if isinstance(value, dict):
        return (kind, frozenset((shape(k), shape(v)) for k, v in value.items()))
    if isinstance(value, frozenset):
        return (kind, frozenset(map(shape, value)))
    if isinstance(value, Point):
        return (kind, shape(value.x), shape(value.y))
    return (kind, repr(value))


def test_values_of_different_types_never_share_a_text() -> None:
    texts = [text_of(value) for value in ONE_OF_EACH]
    assert len(set(texts)) == len(ONE_OF_EACH)


@settings(deadline=None)
@given(values, values)
def test_two_values_have_one_text_only_if_they_are_the_same(one: Any, other: Any) -> None:
    assert (text_of(one) == text_of(other)) == (shape(one) == shape(other))


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), max_size=3), st.lists(st.text(max_size=6), max_size=3))
def test_texts_that_contain_the_signs_of_a_key_stay_apart(one: list[str], other: list[str]) -> None:
    assert (text_of(tuple(one)) == text_of(tuple(other))) == (one == other)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=5), st.randoms())
def test_the_order_of_a_dictionary_or_a_set_does_not_matter(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert text_of(dict(items)) == text_of(value)
    assert text_of({name for name, _ in items}) == text_of(set(value))


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from svc_infra.cache.keys import text_of\n"
        "from uuid import UUID\n"
        "print(text_of((1, 'ä', {'b', 'a', 'c'}, {'x': {2, 1}}, UUID(int=7), 1.5)))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(runs) == 1


class Moscow(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=3)

    def dst(self, moment: datetime | None) -> None: ...

    def tzname(self, moment: datetime | None) -> str:
        return "Moscow"


@pytest.mark.parametrize("value", [object(), lambda: None, print, datetime(2030, 1, 1, tzinfo=Moscow()), (1, object())])
def test_what_has_no_text_is_refused_with_the_mend(value: object) -> None:
    with pytest.raises(ConfigurationError, match="give `key=`, or `ignore="):
        text_of(value)


def take(a: int, b: str = "x", *rest: int, c: int = 0, **more: int) -> None: ...


def test_every_way_to_write_a_call_gives_one_text() -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}), ((1, "x"), {}), ((), {"a": 1}), ((1,), {"b": "x", "c": 0}), ((), {"b": "x", "a": 1}),
    ]  # fmt: skip
    assert len({Arguments(take).text(*call) for call in calls}) == 1


def test_different_calls_give_different_texts() -> None:
    arguments = Arguments(take)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}), ((2,), {}), ((1, "y"), {}), ((1, "x", 2), {}), ((1, "x", 2, 3), {}), ((1,), {"c": 2}),
        ((1,), {"d": 2}), ((1,), {"e": 2}), ((True,), {}),
    ]  # fmt: skip
    assert len({arguments.text(*call) for call in calls}) == len(calls)


def test_a_call_that_the_function_does_not_take_is_told_as_python_does() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        Arguments(take).text((), {})


def test_an_ignored_argument_is_no_part_of_the_key() -> None:
    arguments = Arguments(take, ignore=["b"])
    assert arguments.text((1, "x"), {}) == arguments.text((1, "y"), {})
    with pytest.raises(ConfigurationError, match=r"ignore names session, which .*take does not take"):
        Arguments(take, ignore=["session"])


def test_an_argument_without_a_text_names_the_function() -> None:
    with pytest.raises(ConfigurationError, match=r"test_keys\.take: object cannot be part of a key"):
        Arguments(take).text((object(),), {})


@settings(deadline=None)
@given(st.text(), st.text(), st.text(), st.text())
def test_the_values_in_a_key_template_cannot_run_into_each_other(a: str, b: str, c: str, d: str) -> None:
    def two(one: str, other: str) -> None: ...

    template = Template("{one}:{other}", Arguments(two))
    first, second = (template.fill({"one": x, "other": y}, quoted=True) for x, y in ((a, b), (c, d)))
    assert (first == second) == ((a, b) == (c, d))


def test_a_template_reaches_into_its_arguments() -> None:
    template = Template("at:{a.x}/{b}", Arguments(take))
    assert template.fill({"a": Point(7), "b": "a b/c"}, quoted=False) == "at:7/a b/c"
    assert template.fill({"a": Point(7), "b": "a b/c"}, quoted=True) == "at:7/a b%2Fc"


@pytest.mark.parametrize("text", ["{", "{}", "{0}", "{user_id}", "{a!r}", "{a:>3}"])
def test_a_template_that_cannot_be_filled_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Template(text, Arguments(take))


@settings(deadline=None)
@given(st.text(min_size=MAX_KEY_CHARACTERS - 5, max_size=MAX_KEY_CHARACTERS + 50), st.text(min_size=1, max_size=2))
def test_a_long_key_is_cut_and_stays_distinct(key: str, end: str) -> None:
    assert len(shortened(key)) <= MAX_KEY_CHARACTERS
    assert shortened(key + end) != shortened(key)
