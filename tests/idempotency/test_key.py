"""The header's value, and the digests of a caller's key."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.errors import BadRequestError
from svc_infra.idempotency.key import KEY_PATTERN, MAX_KEY_CHARACTERS, CallersKey, parse_key

printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY_CHARACTERS)
headers = st.text() | st.text(alphabet='"\\ ,;=:*?abc\t\x00\x7fé', max_size=20) | st.text(min_size=250, max_size=520)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (r'"a \"b\" \\ c"', r'a "b" \ c'),
        ('\t "a" ', "a"),
        ("01J9Z3/x+y==", "01J9Z3/x+y=="),
        ('"' + "x" * 255 + '"', "x" * 255),
        ('"' + r"\"" * 255 + '"', '"' * 255),
    ],
)
def test_a_key_is_a_quoted_string_or_a_bare_one(value: str, key: str) -> None:
    assert parse_key([value]) == key


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", '""', '"a', 'a"', '"a"b', '"a";p=1', '"a", "b"', "a, b", "a b", r'"a\b"', "a\\b", '"é"', "é"),
        *('"\x00"', "\x7f", "x" * 256, '"' + "x" * 256 + '"', "a\r\nb", ":YWJj:;x"),
    ],
)
def test_any_other_form_is_refused(value: str) -> None:
    with pytest.raises(BadRequestError, match="must be a quoted string"):
        parse_key([value])


def test_none_is_none_and_two_are_refused() -> None:
    assert parse_key([]) is None
    with pytest.raises(BadRequestError, match="once"):
        parse_key(["a", "a"])


@given(printable)
def test_every_string_of_the_specification_is_read_back(key: str) -> None:
    assert parse_key(['"' + re.sub(r'(["\\])', r"\\\1", key) + '"']) == key


@given(headers | printable.map('"{}"'.format))
def test_the_documented_pattern_is_what_is_read(value: str) -> None:
    value = value.strip(" \t")
    try:
        is_read = parse_key([value]) is not None
    except BadRequestError:
        is_read = False
    assert (re.search(KEY_PATTERN.replace("$", r"\Z"), value) is not None) is is_read  # JSON Schema has no \Z


@given(st.lists(headers, max_size=3))
def test_any_header_is_a_key_or_refused(values: list[str]) -> None:
    try:
        key = parse_key(values)
    except BadRequestError:
        return
    assert key is None if not values else key is not None and 0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii()


parts = st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))


def owned(caller: str, method: str, route: str, key: str) -> CallersKey:
    return CallersKey(caller=caller, method=method, route=route, key=key)


@given(parts, parts)
def test_two_keys_are_one_only_when_all_of_them_is_the_same(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (owned(*one).digest() == owned(*other).digest()) == (one == other)


@given(parts, st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_requests_are_one_only_when_all_parts_are(key: tuple[str, ...], one: list[bytes], other: list[bytes]) -> None:
    mine = owned(*key)
    assert (mine.fingerprint(one) == mine.fingerprint(other)) == (one == other)


def test_a_stored_fingerprint_cannot_be_guessed_without_the_key() -> None:
    mine, other = owned("ada", "POST", "/pay", "k1"), owned("ada", "POST", "/pay", "k2")
    assert mine.fingerprint([b"1234"]) != other.fingerprint([b"1234"])
    assert mine.fingerprint([]) != mine.digest()
