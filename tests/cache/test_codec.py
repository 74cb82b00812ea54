"""What goes into the cache comes out as it was, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from svc_infra.cache.codec import FORMAT, FRESH_UNTIL_OFFSET_BYTES, Codec, Stored, codec_of, is_immutable
from svc_infra.errors import ConfigurationError, ValidationError


class Role(StrEnum):
    ADMIN = "admin"


@dataclass(frozen=True)
class Point:
    x: int
    role: Role = Role.ADMIN


@dataclass
class Order:
    id: UUID
    total: Decimal
    at: datetime
    lines: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Origin(Point):
    z: int = 0


class Struct(msgspec.Struct, frozen=True):
    name: str
    data: bytes


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)
    city: str


class User(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    born: date
    balance: Decimal = Field(alias="Balance", validation_alias="balanceIn", serialization_alias="balanceOut")
    address: Address | None = None
    tags: set[str] = set()
    photo: bytes = b"\xff\x00"


class Forgetful(BaseModel):
    name: str
    secret: str = Field("", exclude=True)
    _note: str = PrivateAttr("")


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict):
    verbose: bool


USER = User.model_validate({"id": UUID(int=1), "born": date(1815, 12, 10), "balanceIn": Decimal("1.10"), "tags": {"a"}})
AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Any, {"a": [1, 2.5, None, True, "ü", b"\xff"], 7: {"b": AT}}),
        (dict[str, int], {"a": 2**64 - 1, "b": -(2**63)}),
        (float, float("inf")),
        (bool, True),
        (str, ""),
        (bytes, b"\x00\xff"),
        (Decimal, Decimal("1.10")),
        (UUID, UUID(int=5)),
        (datetime, AT),
        (datetime, datetime(2030, 1, 1)),  # noqa: DTZ001 - a naive one stays naive
        (timedelta, timedelta(days=-1, microseconds=1)),
        (Role, Role.ADMIN),
        (Point, Point(1)),
        (Order, Order(UUID(int=1), Decimal("0.01"), AT, [Point(1), Point(2)])),
        (Struct, Struct("a", b"\xff")),
        (list[Point], [Point(1)]),
        (tuple[int, str], (1, "a")),
        (frozenset[UUID], frozenset([UUID(int=1)])),
        (Pair, Pair(1, "a")),
        (Options, {"verbose": True}),
        (Literal["a", "b"], "b"),
        (User, USER),
        (User | None, USER),
        (dict[str, list[User]], {"all": [USER, USER]}),
        (Point | int | None, Point(3)),
    ],
)
def test_a_value_comes_back_equal_and_of_its_type(kind: Any, value: Any) -> None:
    codec = Codec(kind)
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("kind", [int, User, list[int], Any])
def test_nothing_is_a_value_of_every_type(kind: Any) -> None:
    assert Codec(kind).decode(Codec(kind).encode(None)) is None


def test_a_time_elsewhere_comes_back_as_the_same_moment_in_utc() -> None:
    there = AT.astimezone(timezone(timedelta(hours=2)))
    back = codec_of(datetime).decode(codec_of(datetime).encode(there))
    assert (back, back.tzinfo) == (there, UTC)


def test_not_a_number_is_stored() -> None:
    back = codec_of(float).decode(codec_of(float).encode(float("nan")))
    assert back != back


class Odd:
    """Nothing that could be stored."""


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Any, Point(1)),
        (Any, (1, 2)),
        (Any, {1, 2}),
        (Any, {"id": UUID(int=1)}),
        (Any, Decimal(1)),
        (Any, Role.ADMIN),
        (Any, Odd()),
        (Any, 2**70),
        (int, "1"),
        (int, 1.5),
        (Point, Origin(1)),
        (list[Point], [Origin(1)]),
        (Address, USER),
        (Forgetful, Forgetful(name="a", secret="b")),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        Codec(kind).encode(value)


def test_what_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValidationError):
        codec_of(Any).encode(endless)


@pytest.mark.parametrize("kind", [Odd, list[Odd], Point | Struct, User | Address, "User"])
def test_a_type_that_cannot_be_stored_is_refused_with_the_mend(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="use plain values, dataclasses"):
        Codec(kind)


def test_another_shape_of_a_class_is_another_type() -> None:
    old = msgspec.defstruct("User", [("id", int)])
    new = msgspec.defstruct("User", [("id", int), ("name", str, "")])
    assert Codec(old).identity != Codec(new).identity
    assert Codec(list[Point]).identity == Codec(list[Point]).identity
    assert len({Codec(kind).identity for kind in (int, str, list[int], User, Address, Point, Any)}) == 7


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_nobody_stored_are_no_value(raw: bytes) -> None:
    stored = Stored.unpack(raw)
    if stored is not None:
        assert raw[0] == FORMAT
    for kind in (int, Point, User, Any):
        try:
            codec_of(kind).decode(raw)
        except ValueError:
            continue


@settings(deadline=None)
@given(
    st.binary(min_size=8, max_size=8),
    st.floats(allow_nan=False),
    st.floats(min_value=0, max_value=1e6),
    st.dictionaries(st.text(), st.binary(max_size=8), max_size=3),
    st.binary(),
)
def test_the_header_comes_back(
    identity: bytes, fresh_until: float, seconds: float, tags: dict[str, bytes], payload: bytes
) -> None:
    stored = Stored(identity, fresh_until, seconds, tags, payload)
    assert Stored.unpack(stored.pack()) == stored


def test_another_format_or_half_a_header_is_no_value() -> None:
    raw = Stored(b"12345678", 1.0, 0.5, {"t": b"x"}, b"payload").pack()
    assert Stored.unpack(bytes([FORMAT + 1]) + raw[1:]) is None
    assert Stored.unpack(raw[:20]) is None
    assert Stored.unpack(b"") is None
    assert raw[FRESH_UNTIL_OFFSET_BYTES : FRESH_UNTIL_OFFSET_BYTES + 8] == b"\x3f\xf0" + bytes(6)  # 1.0


class Suit(Enum):
    HEARTS = [1]  # noqa: RUF012


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True), (1, True), ("a", True), (b"a", True), (AT, True), (UUID(int=1), True), (Decimal(1), True),
        (Suit.HEARTS, True), ((1, ("a",)), True), (frozenset([1]), True), (Point(1), True), (Pair(1, "a"), True),
        (Struct("a", b""), True), (Address(city="Rome"), True),
        ([], False), ({}, False), (set(), False), ((1, []), False), (bytearray(), False), (USER, False),
        (Order(UUID(int=1), Decimal(1), AT), False), (Odd(), False),
    ],
)  # fmt: skip
def test_only_what_nobody_can_change_is_shared(value: Any, expected: bool) -> None:
    assert is_immutable(value) is expected
