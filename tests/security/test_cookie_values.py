from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.datastructures import Headers

from svc_infra.errors import ConfigurationError, ForbiddenError
from svc_infra.security.cookies import Cookies, Csrf
from svc_infra.security.keyring import KeyRing
from svc_infra.testing import FakeClock
from tests.security.conftest import SECRET

NEWER = SecretStr("another secret of more than 32 bytes, at last")
KINDS = ["sign", "seal"]


def written(cookies: Cookies, kind: str, name: str = "flow", value: str = "hello", *, subject: str = "") -> str:
    make = cookies.sign if kind == "sign" else cookies.seal
    return make(name, value, max_age_seconds=60, subject=subject)


def read(cookies: Cookies, kind: str, cookie: str, name: str = "flow", *, subject: str = "") -> str | None:
    look = cookies.verify if kind == "sign" else cookies.open
    return look(name, cookie, subject=subject)


@pytest.fixture
def cookies(clock: FakeClock) -> Cookies:
    return Cookies(KeyRing(SECRET), clock=clock)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_comes_back_until_its_end(kind: str, cookies: Cookies, clock: FakeClock) -> None:
    cookie = written(cookies, kind, value='{"next": "/ü"}')
    assert read(cookies, kind, cookie) == '{"next": "/ü"}'
    clock.advance(59)
    assert read(cookies, kind, cookie) is not None
    clock.advance(1)
    assert read(cookies, kind, cookie) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_belongs_to_its_cookie_and_its_subject(kind: str, cookies: Cookies) -> None:
    cookie = written(cookies, kind, subject="ana")
    assert read(cookies, kind, cookie, subject="ana") == "hello"
    assert read(cookies, kind, cookie, subject="bob") is None
    assert read(cookies, kind, cookie) is None
    assert read(cookies, kind, cookie, "other", subject="ana") is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_key_is_accepted_while_it_is_there(kind: str, cookies: Cookies, clock: FakeClock) -> None:
    cookie = written(cookies, kind)
    assert read(Cookies(KeyRing(NEWER, SECRET), clock=clock), kind, cookie) == "hello"
    assert read(Cookies(KeyRing(NEWER), clock=clock), kind, cookie) is None


def test_a_sealed_value_cannot_be_read(cookies: Cookies) -> None:
    assert "aGVsbG8" in written(cookies, "sign")
    assert "aGVsbG8" not in written(cookies, "seal")
    assert written(cookies, "seal") != written(cookies, "seal")


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_browser_would_keep_is_refused(kind: str, cookies: Cookies) -> None:
    with pytest.raises(ConfigurationError):
        written(cookies, kind, value="x" * 5000)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_change_of_a_character_is_accepted(kind: str, data: st.DataObject) -> None:
    cookies = Cookies(KeyRing(SECRET), clock=FakeClock())
    cookie = written(cookies, kind)
    place = data.draw(st.integers(0, len(cookie) - 1))
    other = data.draw(st.characters().filter(lambda character: character != cookie[place]))
    changed = read(cookies, kind, cookie[:place] + other + cookie[place + 1 :])
    assert changed in (None, "hello")  # the last character of base64 has bits that mean nothing


@pytest.mark.parametrize("kind", KINDS)
@given(cookie=st.one_of(st.text(max_size=100), st.binary(max_size=100).map(lambda raw: raw.decode("latin-1"))))
def test_what_was_never_written_is_nothing(kind: str, cookie: str) -> None:
    assert read(Cookies(KeyRing(SECRET), clock=FakeClock()), kind, cookie) is None


def test_a_token_against_other_sites_is_good_for_one_login() -> None:
    csrf, ana, bob = Csrf(KeyRing(SECRET)), uuid4(), uuid4()
    token = csrf.token(ana)
    assert token != csrf.token(ana)
    headers = Headers({"host": "shop.example", "x-csrf-token": token})
    csrf.check(headers, token, ana)
    csrf.check(headers, token)
    Csrf(KeyRing(NEWER, SECRET)).check(headers, token, ana)
    for other, cookie, session_id in (
        (csrf, token, bob),
        (csrf, csrf.token(ana), ana),
        (csrf, "", ana),
        (Csrf(KeyRing(NEWER)), token, ana),
    ):
        with pytest.raises(ForbiddenError):
            other.check(headers, cookie, session_id)


@given(token=st.text(max_size=120))
def test_what_is_no_such_token_is_refused(token: str) -> None:
    headers = Headers(raw=[(b"host", b"a"), (b"x-csrf-token", token.encode("utf-8", "surrogatepass"))])
    with pytest.raises(ForbiddenError):
        Csrf(KeyRing(SECRET)).check(headers, headers["x-csrf-token"])
