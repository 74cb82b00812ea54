"""What reads a header takes any bytes: it gives something well formed or refuses, in time that grows with the length.

Properties of one parser alone stand with that parser; here is what holds for all of them, and for those without any.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.datastructures import Headers

from svc_infra.config.serving import CorsSettings
from svc_infra.edge.cors import cors, is_preflight
from svc_infra.edge.hosts import TrustedHosts
from svc_infra.errors import BadRequestError, ConfigurationError, IdempotencyKeyMalformedError, InvalidTokenError
from svc_infra.idempotency.key import parse_key
from svc_infra.middleware._limiter import network
from svc_infra.middleware._scope import read_headers
from svc_infra.middleware.conditional import parse_entity_tags, parse_http_date
from svc_infra.middleware.gcra import Rate
from svc_infra.middleware.problem import encoded
from svc_infra.middleware.proxies import TrustedProxies
from svc_infra.obs.redact import redacted, shown
from svc_infra.obs.tracing import parse_traceparent
from svc_infra.obs.tracing.spans import _asked
from svc_infra.security.keyring import KeyRing
from svc_infra.security.tokens import AccessTokens
from svc_infra.testing import FakeClock

LENGTH = 64 * 1024
SECONDS = 0.5  # of this thread's own; a step for each pair of characters would take many
SHORTER_LENGTH, SHORTER_SECONDS = 8 * 1024, 0.1

CLOCK = FakeClock()
TOKENS = AccessTokens(KeyRing(SecretStr("k" * 32)), issuer="i", audience="a", ttl_seconds=60, clock=CLOCK)
GENUINE, _ = TOKENS.issue(
    user_id=UUID(int=1),
    session_id=UUID(int=2),
    session_ends_at=CLOCK.now() + timedelta(days=1),
    authenticated_at=CLOCK.now(),
)
PROXIES = {
    header: TrustedProxies(["192.0.2.0/24"], header=header, forwarded_host=True)
    for header in ("x-forwarded", "forwarded")
}
HOSTS = TrustedHosts(["api.example.com", "*.example.com"])
CORS = cors(None, CorsSettings(origins=("https://*.example.com",)))  # type: ignore[arg-type]


def scope_of(name: str, value: str) -> dict[str, Any]:
    headers = [(name.encode(), value.encode("latin-1", "replace"))]
    return {"type": "http", "scheme": "http", "method": "OPTIONS", "headers": headers, "client": ("192.0.2.1", 1)}


def proxied(header: str) -> Callable[[str], object]:
    def apply(text: str) -> None:
        for name in ("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"):
            PROXIES[header].apply(scope_of(name, text))

    return apply


def preflight(text: str) -> None:
    asked = Headers({"origin": text, "access-control-request-method": text, "access-control-request-headers": text})
    assert is_preflight({"method": "OPTIONS"}, asked)
    assert CORS is not None
    CORS.preflight_response(request_headers=asked)
    CORS.is_allowed_origin(text)


PARSERS: dict[str, tuple[Callable[[str], object], type[Exception] | None]] = {
    "request id": (lambda text: read_headers(scope_of("x-request-id", text)["headers"]), None),
    "content length": (lambda text: read_headers(scope_of("content-length", text)["headers"]), None),
    "traceparent": (parse_traceparent, None),
    "idempotency key": (lambda text: parse_key([text]), IdempotencyKeyMalformedError),
    "rate": (Rate.parse, ConfigurationError),
    "entity tags": (lambda text: parse_entity_tags([text]), BadRequestError),
    "date": (parse_http_date, None),
    "x-forwarded": (proxied("x-forwarded"), None),
    "forwarded": (proxied("forwarded"), None),
    "host": (lambda text: HOSTS.check(scope_of("host", text)["headers"]), BadRequestError),
    "preflight": (preflight, None),
    "access token": (TOKENS.verify, InvalidTokenError),
    "claims": (lambda text: TOKENS.verify(f"{GENUINE.partition('.')[0]}.{text}"), InvalidTokenError),
    "signature": (lambda text: TOKENS.verify(f"{GENUINE.rpartition('.')[0]}.{text}"), InvalidTokenError),
    "network": (network, None),
    "host of a span": (lambda text: _asked({**scope_of("host", text), "path": "/"}), None),
    "header of an answer": (lambda text: encoded([("a", text)]), None),
    "log": (redacted, None),
    "log, cut": (lambda text: shown(text, keep_end=True), None),
}

latin = st.text(st.characters(max_codepoint=255), max_size=60)
PIECES = [
    *('"', "\\", ",", ";", "=", ".", "-", "/", ":", "*", " ", "\t", "W/", "[", "]", "%", "_"),
    *("a", "0", "-00", "00-", "GMT", "Mon", "for=", 'for="', 'W/"a"', "https://", "eyJ", "eyJaaaa.", "password="),
    *("example.com", "Bearer ", "://a:", "minute", "\x00", "\r\n", "\xff"),
]
pieces = st.sampled_from(PIECES)
words = st.lists(pieces, max_size=4).map("".join)


def taken(name: str, text: str) -> None:
    parse, refusal = PARSERS[name]
    try:
        parse(text)
    except Exception as error:
        if refusal is None or not isinstance(error, refusal):
            raise


@pytest.mark.parametrize("name", PARSERS)
@given(text=latin | st.lists(pieces, max_size=30).map("".join))
def test_any_text_is_read_or_refused_as_documented(name: str, text: str) -> None:
    taken(name, text)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=timedelta(seconds=20), max_examples=150)
@given(before=words, repeated=words.filter(bool), after=words)
def test_a_long_text_costs_no_more_than_its_length(name: str, before: str, repeated: str, after: str) -> None:
    hostile = f"{before}{repeated * (LENGTH // len(repeated))}{after}"
    started = time.thread_time()
    taken(name, hostile)
    assert time.thread_time() - started < SECONDS


SAMPLES = {
    "request id": "a.b-c",
    "content length": "12",
    "traceparent": f"01-{'a' * 32}-{'b' * 16}-01-x",
    "idempotency key": r'"a \" b"',
    "rate": "100 / 15 minutes ",
    "entity tags": '"a" , W/"b"',
    "date": "Sunday, 06-Nov-94 08:49:37 GMT",
    "x-forwarded": "[::1]:5, 192.0.2.1",
    "forwarded": 'for="[::1]:9";host=a.b:1, for=192.0.2.1',
    "host": "api.example.com:443",
    "preflight": "https://a.example.com",
    "access token": "a.b.c",
    "claims": "eyJhIjoxfQ",
    "signature": "AbC_-",
    "network": "fe80::1%eth0",
    "host of a span": "[::1]:443",
    "header of an answer": "a b",
    "log": "://a:b@ password='d' Bearer e",
    "log, cut": "eyJaaaa.b",
}
"""What each reads; it is cut anywhere, and goes on badly."""


@pytest.mark.parametrize("name", PARSERS)
def test_no_text_that_begins_well_and_goes_on_badly_costs_more_than_its_length(name: str) -> None:
    """Where a pattern could match in many ways, as after a beginning that it likes, it would try them all."""
    for before in [SAMPLES[name][:end] for end in range(len(SAMPLES[name]) + 1)]:
        for piece in PIECES:
            started = time.thread_time()
            taken(name, before + piece * (SHORTER_LENGTH // len(piece)) + "\x00")
            assert time.thread_time() - started < SHORTER_SECONDS, (before, piece)


names = st.sampled_from([b"x-request-id", b"traceparent", b"content-length", b"host", b"cookie"]) | st.binary(
    max_size=9
)
values = st.binary(max_size=40) | st.from_regex(rb"[0-9a-f-]{1,60}", fullmatch=True) | st.integers().map(b"%d".__mod__)


@given(headers=st.lists(st.tuples(names, values), max_size=12))
def test_what_the_edge_takes_from_any_headers_is_well_formed(headers: list[tuple[bytes, bytes]]) -> None:
    sent = read_headers(headers)
    assert re.fullmatch(r"([A-Za-z0-9._-]{1,128})?", sent.request_id)
    assert sent.trace is None or re.fullmatch(r"[0-9a-f]{32}[0-9a-f]{16}", sent.trace.trace_id + sent.trace.span_id)
    assert sent.body_bytes >= 0
    assert sent.headers == len(headers)
    assert sent.header_bytes == sum(len(name) + len(value) for name, value in headers)
    if [name for name, _ in headers].count(b"x-request-id") > 1:
        assert sent.request_id == ""
