from __future__ import annotations

from uuid import uuid4

import pytest

from svc_infra.errors import ConfigurationError
from svc_infra.security.keys.form import KeyForm, is_key, mark_of, owner_mark

OWNER = uuid4()


def test_a_key_has_its_prefix_its_owners_mark_and_a_checksum() -> None:
    keys = {KeyForm("acme").draw(OWNER) for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert is_key(key)
        assert key.startswith(f"acme_{owner_mark(OWNER)}")
        assert mark_of(key) == owner_mark(OWNER)
        assert len(key) == len("acme_") + 40


def test_every_single_wrong_character_is_noticed() -> None:
    key = KeyForm().draw(OWNER)
    for place in range(len(key)):
        wrong = "x" if key[place] != "x" else "y"
        assert not is_key(key[:place] + wrong + key[place + 1 :])
        assert not is_key(key[:place] + key[place + 1 :])


@pytest.mark.parametrize(
    "text",
    ["", "svc", "svc_", "_" * 44, "svc_" + "0" * 40, "svc_" + "é" * 40, "svc_" + "٣" * 40, "a" * 1_000_000, "\x00"],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    assert not is_key(text)
    assert not is_key(KeyForm().draw(OWNER) + text + "\n")


@pytest.mark.parametrize("prefix", ["", "a", "A", "1a", "a_b", "a b", "x" * 17, "aa\n"])
def test_a_prefix_that_no_scanner_could_find_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        KeyForm(prefix)
