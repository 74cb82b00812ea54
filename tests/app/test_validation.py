"""What a 422 says about each value: where it is and what is wrong, never the value itself."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from svc_infra.app.validation import MAX_COMPARED_CHARACTERS, MAX_ERRORS, MAX_KEY_CHARACTERS, MAX_LOC_PARTS, described

REFUSED = "The value is not acceptable."


def wrong(kind: Any, document: Any, *, at: tuple[str, ...] = ("body",)) -> list[dict[str, Any]]:
    """What `described` says about a document that this type does not accept."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(kind).validate_python(document)
    errors = [{**error, "loc": (*at, *error["loc"])} for error in raised.value.errors()]
    return list(described(errors, document=document))


class Colour(Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int


def echoes(value: Any) -> Any:
    raise ValueError(f"{value!r} is taken")


def echoes_a_part_in_upper_case(value: str) -> str:
    raise ValueError(f"{value[3:14].upper()}... is taken")


def asserts(value: str) -> str:
    assert value == "other", f"{value} is not other"
    return value


def custom(value: str) -> str:
    raise PydanticCustomError("taken", "{value} is taken", {"value": value})


def explains(value: str) -> str:
    raise ValueError("choose a longer one")


class Account(BaseModel):
    password: str
    hint: str = ""

    @field_validator("hint")
    @classmethod
    def _hint(cls, hint: str) -> str:
        raise ValueError("a hint may not repeat the password")

    @model_validator(mode="after")
    def _whole(self) -> Account:
        raise ValueError(f"{self.password} is too weak")


SECRET = "marker-7f3a-secret"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, SECRET),
        (Colour, SECRET),
        (Literal["a"], SECRET),
        (EmailStr, f"{SECRET}@{SECRET}@x"),
        (Annotated[str, Field(pattern="^x$")], SECRET),
        (Annotated[str, Field(max_length=2)], SECRET),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": SECRET}),
        (Annotated[str, AfterValidator(echoes)], SECRET),
        (Annotated[str, AfterValidator(echoes_a_part_in_upper_case)], SECRET),
        (Annotated[str, AfterValidator(asserts)], SECRET),
        (Annotated[str, AfterValidator(custom)], SECRET),
        (Annotated[bytes, AfterValidator(echoes)], SECRET.encode()),
        (Account, {"password": SECRET}),
        (dict[str, int], {"key": SECRET}),
        (tuple[int, int], [SECRET, SECRET, SECRET]),
    ],
)
def test_no_message_repeats_the_value(kind: Any, value: Any) -> None:
    assert "marker" not in json.dumps(wrong(kind, value)).casefold()


@pytest.mark.parametrize("value", [7, 12.5, "ab", "x", "é"])
def test_short_values_are_not_repeated_either(value: Any) -> None:
    (error,) = wrong(Annotated[Any, AfterValidator(echoes)], value)
    assert error["detail"] == REFUSED


def test_messages_that_do_not_repeat_the_value_are_kept() -> None:
    (error,) = wrong(Annotated[str, AfterValidator(explains)], "short")
    assert error["detail"] == "choose a longer one"
    (error,) = wrong(int, "string")
    assert error["detail"] == "Input should be a valid integer, unable to parse string as an integer"


def test_a_custom_message_about_a_value_too_large_to_compare_is_not_shown() -> None:
    (error,) = wrong(Annotated[str, AfterValidator(explains)], "x" * (MAX_COMPARED_CHARACTERS + 1))
    assert error["detail"] == REFUSED


@given(st.text(min_size=1).filter(str.strip) | st.integers() | st.binary(min_size=1))
def test_whatever_the_value_is_an_echo_of_it_is_never_shown(value: Any) -> None:
    def quote(value: Any) -> Any:
        raise ValueError(f"<{value if not isinstance(value, bytes) else value.decode(errors='replace')}>")

    (error,) = wrong(Annotated[Any, AfterValidator(quote)], value)
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    assert not text.strip() or error["detail"] == REFUSED


@pytest.mark.parametrize(
    ("kind", "document", "pointers"),
    [
        (Cat, {"kind": "cat", "lives": "nine"}, ["#/lives"]),
        (Cat, {"kind": "cat"}, ["#/lives"]),
        (Cat, [], ["#"]),
        (list[Cat], [{"kind": "cat", "lives": 9}, {"kind": "cat", "lives": None}], ["#/1/lives"]),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog"}, ["#/name"]),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog", "name": 1}, ["#/name"]),
        (dict[str, int | float], {"a/b~c d": "x"}, ["#/a~1b~0c%20d", "#/a~1b~0c%20d"]),
        (dict[int, int], {"x": 1}, ["#/x"]),
        (Strict, {"id": 1, "extra": 2}, ["#/extra"]),
    ],
)
def test_a_pointer_leads_to_the_value_in_the_document(kind: Any, document: Any, pointers: list[str]) -> None:
    assert [error["pointer"] for error in wrong(kind, document)] == pointers


def test_values_outside_of_the_body_have_no_pointer() -> None:
    (error,) = wrong(int, "x", at=("query", "limit"))
    assert error["loc"] == ["query", "limit"]
    assert "pointer" not in error


def test_an_error_is_described_by_its_place_its_message_and_its_type_alone() -> None:
    (error,) = wrong(Cat, {"kind": "cat", "lives": "nine"})
    assert set(error) == {"loc", "detail", "type", "pointer"}
    assert error["loc"] == ["body", "lives"]
    assert error["type"] == "int_parsing"


def test_long_keys_are_cut_and_long_lists_end() -> None:
    (error,) = wrong(Strict, {"id": 1, "k" * 5_000: 2})
    assert error["loc"] == ["body", "k" * MAX_KEY_CHARACTERS]
    assert len(error["pointer"]) == MAX_KEY_CHARACTERS + 2
    assert len(wrong(list[int], ["x"] * (MAX_ERRORS + 50))) == MAX_ERRORS


def test_deep_places_are_cut() -> None:
    error = {"type": "missing", "loc": ("body", *range(1_000)), "msg": "Field required", "input": None}
    (entry,) = described([error], document=[])
    assert len(entry["loc"]) == MAX_LOC_PARTS
