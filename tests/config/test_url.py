"""Passwords in URLs."""

from __future__ import annotations

import pytest

from svc_infra.config.url import Url, mask_url


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("sqlite:///svc-infra.db", "sqlite:///svc-infra.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("postgresql://user@/db?host=/run/pg", "postgresql://user@/db?host=/run/pg"),
        ("postgresql://user:pw@host/db", "postgresql://user:***@host/db"),
        ("redis://:pw@host", "redis://:***@host"),
        ("postgresql://us/er:p@s/s:w?d#@host/db", "postgresql://us/er:***@host/db"),
        ("redis://host?db=1&password=a@b", "redis://host?db=1&password=***"),
        ("user:pw@host", "user:***@host"),
        ("postgresql:/user:pw@host/db", "postgresql:***@host/db"),
    ],
)
def test_the_password_is_masked_and_nothing_else(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert repr(Url(url)) == repr(masked)
    assert str(Url(url)) == url
