from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.obs.tracing import TraceParent, make_traceparent, new_span_id, new_trace_id, parse_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def ids(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=length, max_size=length).filter(lambda text: text.strip("0") != "")


@settings(deadline=None)
@given(ids(32), ids(16), st.booleans())
def test_what_is_made_is_read_back(trace_id: str, span_id: str, sampled: bool) -> None:
    parent = TraceParent(trace_id, span_id, sampled)
    assert parse_traceparent(make_traceparent(parent)) == parent


@settings(deadline=None)
@given(ids(32), ids(16), st.integers(0, 255), st.integers(1, 254), st.text("0123456789abcdef-xyz"))
def test_a_later_version_is_read_by_its_first_fields(
    trace_id: str, span_id: str, flags: int, version: int, rest: str
) -> None:
    known = f"{version:02x}-{trace_id}-{span_id}-{flags:02x}"
    expected = TraceParent(trace_id, span_id, sampled=flags % 2 == 1)
    assert parse_traceparent(known) == expected
    assert parse_traceparent(f"{known}-{rest}") == expected
    assert parse_traceparent(f"{known}{rest.replace('-', '')}x") is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"0A-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00_{TRACE}_{SPAN}_01",
        f"٠٠-{TRACE}-{SPAN}-01",
    ],
)
def test_a_header_that_is_not_valid_is_refused(header: str) -> None:
    assert parse_traceparent(header) is None


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused_without_an_error(text: str) -> None:
    parent = parse_traceparent(text)
    if parent is not None:
        assert text[3:52] == f"{parent.trace_id}-{parent.span_id}"


def test_new_ids_are_valid_and_differ() -> None:
    traces, spans = {new_trace_id() for _ in range(100)}, {new_span_id() for _ in range(100)}
    assert len(traces) == len(spans) == 100
    for trace_id, span_id in zip(traces, spans, strict=True):
        parent = TraceParent(trace_id, span_id, sampled=False)
        assert parse_traceparent(make_traceparent(parent)) == parent
