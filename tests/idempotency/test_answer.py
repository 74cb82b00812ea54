"""What of an answer is stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.idempotency import Answer

names = st.binary(min_size=1, max_size=8)


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "set-cookie2",
        "Authorization",
        "WWW-Authenticate",
        "Proxy-Authorization",
        "Authentication-Info",
        "X-Auth-Token",
        "X-CSRF-Token",
        "X-Api-Key",
        "X-Session-Id",
        "Client-Secret",
        "Connection",
        "Keep-Alive",
        "Transfer-Encoding",
        "Upgrade",
        "TE",
        "Trailer",
        "Proxy-Connection",
    ],
)
def test_credentials_and_what_belongs_to_a_connection_are_never_stored(name: str) -> None:
    kept = Answer.of(200, [(name.encode(), b"x"), (b"Location", b"/1")], b"")
    assert kept.headers == ((b"location", b"/1"),)


def test_what_the_connection_header_names_belongs_to_the_connection_too() -> None:
    headers = [(b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"X-Kept", b"2")]
    assert Answer.of(200, headers, b"").headers == ((b"x-kept", b"2"),)


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 404, 409, 410, 422])
def test_an_answer_about_the_request_is_final(status: int) -> None:
    assert Answer(status, (), b"").is_final


@pytest.mark.parametrize("status", [100, 401, 403, 408, 425, 429, 500, 502, 503, 504, 599])
def test_an_answer_about_the_moment_is_not(status: int) -> None:
    assert not Answer(status, (), b"").is_final


@given(st.lists(st.tuples(names, st.binary(max_size=8)), max_size=5), st.binary(max_size=20))
def test_what_is_packed_is_unpacked(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    answer = Answer.of(200, headers, body)
    assert Answer.unpacked(200, answer.packed_headers(), body) == answer
    assert answer.size_bytes == len(body) + sum(len(name) + len(value) for name, value in answer.headers)
