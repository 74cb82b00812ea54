from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from time import process_time
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from svc_infra.obs.redact import MAX_TEXT_CHARS, MAX_VALUES, cleaned, is_secret, redacted, shown, to_json

SECRETS = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", min_size=12, max_size=40)
SECRET_KEYS = st.sampled_from(
    [
        "password",
        "new_password",
        "PASSWORD",
        "token",
        "accessToken",
        "refresh_token",
        "client_secret",
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "api_key",
        "apiKey",
        "X-API-Key",
        "x-signature",
        "private_key",
        "credentials",
        "otp",
    ]
)
HARMLESS_KEYS = st.sampled_from(["user_id", "items", "note", "author", "keyboard", "shipping"])


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3), st.dictionaries(HARMLESS_KEYS, inner, min_size=1)
        ),
    )


@settings(deadline=None)
@given(key=SECRET_KEYS, secret=SECRETS, wrap=nested(st.just(None)), data=st.data())
def test_a_secret_under_a_telling_key_never_gets_out_however_deep(
    key: str, secret: str, wrap: Any, data: st.DataObject
) -> None:
    value: Any = data.draw(st.sampled_from([secret, [secret], {"inner": secret}, secret.encode(), (secret,)]))
    holder = {"around": wrap, "inside": [{"deeper": {key: value}}], key: value}
    assert secret not in json.dumps(cleaned(holder))


@settings(deadline=None)
@given(secret=SECRETS, before=st.text(max_size=30), after=st.text(max_size=30), data=st.data())
def test_a_secret_in_a_text_never_gets_out(secret: str, before: str, after: str, data: st.DataObject) -> None:
    assume(secret not in before + after)
    form = data.draw(
        st.sampled_from(
            [
                "Authorization: Bearer {0}",
                "bearer {0}",
                "Basic {0}",
                "eyJhbGciOi.{0}.{0}",
                "postgresql+asyncpg://user:{0}@db.internal:5432/app",
                "redis://:{0}@cache/0",
                "/reset?token={0}&x=1",
                "password={0}",
                "password = '{0} and more'",
                '{{"client_secret": "{0}"}}',
                "{{'api_key': '{0}'}}",
                "Set-Cookie: session={0}; Path=/",
                "x-api-key: {0}",
            ]
        )
    )
    assert secret not in redacted(f"{before} {form.format(secret)} {after}")


@pytest.mark.parametrize(
    "text",
    [
        "GET /users/42 200",
        "invalid token: expired",
        "basic information about the bearer",
        "postgresql://db.internal:5432/app",
        "mail ada@example.org at 10:30",
        "https://example.org:8443/a/b?page=2",
        "author=Ada keyboard=qwerty",
    ],
)
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("key", ["author", "authorized_by", "keyboard", "monkey", "shipping", "pinned", "id", "spin"])
def test_harmless_names_are_not_taken_for_secrets(key: str) -> None:
    assert not is_secret(key)


@pytest.mark.parametrize(
    "text",
    [
        *["eyJ" * 6000, "eyJ-" * 4500, "eyJa." * 3600, "basic " + "a" * 17000, "secret" + "-" * 17000],
        *[
            word * (18000 // len(word))
            for word in ("password", "bearer ", "basic ", "://:", "://a:", 'password="', "token= ")
        ],
    ],
)
def test_no_text_makes_redaction_slow(text: str) -> None:
    started = process_time()
    redacted(text)
    assert process_time() - started < 0.25  # quadratic work would take seconds


def test_a_long_text_is_cut_and_says_how_much_is_missing() -> None:
    assert shown("a" * (MAX_TEXT_CHARS + 7)) == "a" * MAX_TEXT_CHARS + " [7 characters cut]"
    assert shown("b" + "a" * MAX_TEXT_CHARS, keep_end=True) == "[1 characters cut] " + "a" * MAX_TEXT_CHARS
    assert shown("a" * MAX_TEXT_CHARS) == "a" * MAX_TEXT_CHARS


@pytest.mark.parametrize("offset", range(-40, 1))
def test_a_secret_that_the_cut_would_halve_is_redacted_all_the_same(offset: int) -> None:
    text = "x" * (MAX_TEXT_CHARS + offset) + " redis://:SECRETSECRETSECRET@cache/0 " + "y" * 100
    assert "SECRET" not in shown(text)


def test_wide_and_deep_values_are_cut() -> None:
    wide = cleaned({"values": list(range(10 * MAX_VALUES)), "more": 1})
    assert len(wide["values"]) < MAX_VALUES + 1
    deep: Any = "bottom"
    for _ in range(50):
        deep = [deep]
    assert "bottom" not in json.dumps(cleaned({"deep": deep}))
    tree: Any = 1
    for _ in range(6):
        tree = [tree] * 50
    assert len(json.dumps(cleaned({"tree": tree}))) < 100 * MAX_VALUES


def test_a_value_that_cannot_be_printed_costs_only_itself() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert cleaned({"a": Broken(), "b": 1}) == {"a": "<Broken that cannot be printed: RuntimeError>", "b": 1}


def test_values_of_every_kind_become_json() -> None:
    fields = {
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "id": UUID(int=7),
        "price": Decimal("1.50"),
        "huge": 10**30,
        "flag": True,
        "nothing": None,
        "token": None,
        "is_token": True,
        "set": {1},
        "kind": int,
        3: "three",
    }
    assert cleaned(cast(dict[str, object], fields)) == {
        "time": "2026-01-02T00:00:00+00:00",
        "id": "00000000-0000-0000-0000-000000000007",
        "price": "1.50",
        "huge": "1" + "0" * 30,
        "flag": True,
        "nothing": None,
        "token": None,
        "is_token": True,
        "set": [1],
        "kind": "<class 'int'>",
        "3": "three",
    }


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters()), st.binary()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(st.characters()), inner, max_size=3)),
    max_leaves=10,
)


@settings(deadline=None)
@given(ANYTHING)
def test_any_value_can_be_written_as_json(value: Any) -> None:
    json.loads(to_json(value))
    json.loads(to_json(cleaned({"value": value})))
