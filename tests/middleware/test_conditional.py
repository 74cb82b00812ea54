"""Conditional requests: the rules of RFC 9110, section 13, over HTTP, and the readers of their headers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.errors import BadRequestError, ConfigurationError, PreconditionFailedError
from svc_infra.middleware.conditional import (
    MAX_ENTITY_TAGS,
    Conditional,
    etag_of,
    parse_entity_tags,
    parse_http_date,
)

NOW = datetime(2026, 1, 5, 12, 0, 0, 500_000, tzinfo=UTC)
WRITES = ("PUT", "PATCH", "POST", "DELETE")


def date(moved_seconds: float) -> str:
    return format_datetime(NOW.replace(microsecond=0) + timedelta(seconds=moved_seconds), usegmt=True)


def served(**now: Any) -> tuple[TestClient, list[str]]:
    """A client of one resource that is as it says, and the methods that were carried out."""
    app: FastAPI = create_app(settings=Settings(app={"env": "test"}))
    done: list[str] = []

    @app.api_route("/it", methods=["GET", "HEAD", *WRITES])
    async def it(request: Request, response: Response, conditional: Annotated[Conditional, Depends()]) -> str:
        response.headers["Cache-Control"] = "private"
        response.headers["X-Not-In-304"] = "yes"
        conditional.check(**now)
        done.append(request.method)
        return "it"

    return TestClient(app), done


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"If-None-Match": '"a"'}, 304),
        ("HEAD", {"If-None-Match": '"a"'}, 304),
        ("GET", {"If-None-Match": 'W/"a"'}, 304),  # weak comparison
        ("GET", {"If-None-Match": '"b", W/"c" , "a"'}, 304),
        ("GET", {"If-None-Match": "*"}, 304),
        ("GET", {"If-None-Match": '"b"'}, 200),
        ("GET", {"If-None-Match": '"A"'}, 200),
        ("GET", {"If-None-Match": "a"}, 200),  # not well formed: never given by us
        ("PUT", {"If-None-Match": '"a"'}, 412),
        ("POST", {"If-None-Match": "*"}, 412),
        ("DELETE", {"If-None-Match": '"b"'}, 200),
        ("PUT", {"If-None-Match": "a"}, 400),
        ("PUT", {"If-Match": '"a"'}, 200),
        ("PUT", {"If-Match": '"b", "a"'}, 200),
        ("PUT", {"If-Match": "*"}, 200),
        ("PUT", {"If-Match": 'W/"a"'}, 412),  # strong comparison
        ("PATCH", {"If-Match": '"b"'}, 412),
        ("DELETE", {"If-Match": ""}, 400),
        ("PUT", {"If-Match": '"a" "b"'}, 400),
        ("GET", {"If-Match": '"b"'}, 412),
        ("PUT", {"If-Unmodified-Since": date(0)}, 200),
        ("PUT", {"If-Unmodified-Since": date(-1)}, 412),
        ("PUT", {"If-Unmodified-Since": "yesterday"}, 200),
        ("GET", {"If-Modified-Since": date(0)}, 304),
        ("GET", {"If-Modified-Since": date(-1)}, 200),
        ("GET", {"If-Modified-Since": "yesterday"}, 200),
        ("PUT", {"If-Modified-Since": date(0)}, 200),  # only for GET and HEAD
        ("PUT", {"If-Match": '"a"', "If-Unmodified-Since": date(-1)}, 200),  # If-Match comes first
        ("PUT", {"If-Match": '"b"', "If-Unmodified-Since": date(0)}, 412),
        ("GET", {"If-None-Match": '"b"', "If-Modified-Since": date(0)}, 200),  # If-None-Match comes first
        ("GET", {"If-None-Match": '"a"', "If-Modified-Since": date(-1)}, 304),
        ("GET", {"If-Match": '"b"', "If-None-Match": '"a"'}, 412),
        ("GET", {"If-Match": '"a"', "If-None-Match": '"a"'}, 304),
        ("PUT", {"If-Match": '"a"', "If-None-Match": '"a"'}, 412),
    ],
)
def test_a_precondition_decides_by_the_rules(method: str, headers: dict[str, str], status: int) -> None:
    client, done = served(etag='"a"', last_modified=NOW)
    answer = client.request(method, "/it", headers=headers)
    assert answer.status_code == status
    assert done == ([method] if status == 200 else [])


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("PUT", {"If-None-Match": "*"}, 200),
        ("PUT", {"If-Match": "*"}, 412),
        ("PUT", {"If-Match": '"a"'}, 412),
        ("PUT", {"If-Unmodified-Since": date(0)}, 200),
    ],
)
def test_a_precondition_on_nothing(method: str, headers: dict[str, str], status: int) -> None:
    client, _ = served(exists=False)
    assert client.request(method, "/it", headers=headers).status_code == status


@pytest.mark.parametrize("tag", ['W/"a"', None])
def test_without_a_strong_tag_no_if_match_holds(tag: str | None) -> None:
    client, _ = served(etag=tag)
    assert client.put("/it", headers={"If-Match": tag or '"a"'}).status_code == 412


def test_a_304_has_the_validators_and_what_steers_caches_and_no_body() -> None:
    client, _ = served(etag='"a"', last_modified=NOW)
    whole = client.get("/it")
    again = client.get("/it", headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("etag", "last-modified", "cache-control"):
        assert again.headers[name] == whole.headers[name]
    assert "x-not-in-304" in whole.headers
    assert "x-not-in-304" not in again.headers


def test_a_write_is_not_answered_with_the_old_tag() -> None:
    client, _ = served(etag='"a"', last_modified=NOW)
    answer = client.put("/it", headers={"If-Match": '"a"'})
    assert "etag" not in answer.headers
    assert "last-modified" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 428),
        ({"If-Modified-Since": date(0)}, 428),
        ({"If-Unmodified-Since": "whenever"}, 428),  # it would be ignored
        ({"If-Unmodified-Since": date(0)}, 200),
        ({"If-Match": '"a"'}, 200),
        ({"If-None-Match": '"b"'}, 200),
    ],
)
def test_a_write_that_must_say_what_it_expects(headers: dict[str, str], status: int) -> None:
    client, _ = served(etag='"a"', last_modified=NOW, required=True)
    assert client.put("/it", headers=headers).status_code == status
    assert client.get("/it").status_code == 200


def test_refusals_are_problems_with_their_own_codes() -> None:
    client, _ = served(etag='"a"', required=True)
    codes = [client.put("/it", headers=headers).json()["code"] for headers in ({}, {"If-Match": '"b"'})]
    assert codes == ["precondition_required", "precondition_failed"]


@pytest.mark.parametrize(
    "nonsense",
    [{"etag": "a"}, {"etag": '"a b"'}, {"last_modified": NOW.replace(tzinfo=None)}, {"etag": '"a"', "exists": False}],
)
def test_nonsense_from_the_handler_is_its_own_error(nonsense: dict[str, Any]) -> None:
    request = Request({"type": "http", "method": "GET", "headers": []})
    with pytest.raises(ConfigurationError):
        Conditional(request, Response()).check(**nonsense)


tags = st.builds(
    lambda weak, text: f'{weak}"{text}"',
    st.sampled_from(["", "W/"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='"\x7f'), max_size=8),
)


@given(st.lists(tags, min_size=1, max_size=8), st.sampled_from([",", ", ", " ,\t", ", ,"]), st.integers(1, 3))
def test_every_list_is_read_back(listed: list[str], separator: str, headers: int) -> None:
    values = [separator.join(listed[at::headers]) for at in range(headers) if listed[at::headers]]
    assert sorted(parse_entity_tags(values) or []) == sorted(listed)


@given(st.lists(st.text() | tags | st.text(alphabet='W/", *\tab'), max_size=4))
def test_any_text_is_a_list_or_refused(values: list[str]) -> None:
    try:
        found = parse_entity_tags(values)
    except BadRequestError:
        return
    assert found is None or all(tag.endswith('"') and tag.count('"') == 2 for tag in found)


@given(tags, tags)
def test_strong_comparison_implies_weak_comparison(one: str, other: str) -> None:
    def answer(method: str, name: str) -> int:
        headers = [(name.encode(), other.encode("latin-1"))]
        try:
            Conditional(Request({"type": "http", "method": method, "headers": headers}), Response()).check(etag=one)
        except HTTPException as unchanged:
            return unchanged.status_code
        except PreconditionFailedError as refused:
            return refused.status
        return 200

    strong, weak = answer("PUT", "if-match") == 200, answer("GET", "if-none-match") == 304
    assert strong == (one == other and not one.startswith("W/"))
    assert weak == (one.removeprefix("W/") == other.removeprefix("W/"))
    assert weak or not strong


def test_a_list_is_bounded() -> None:
    assert len(parse_entity_tags([",".join(['"a"'] * MAX_ENTITY_TAGS)]) or []) == MAX_ENTITY_TAGS
    with pytest.raises(BadRequestError):
        parse_entity_tags([",".join(['"a"'] * (MAX_ENTITY_TAGS + 1))])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        ("Sunday, 06-Nov-94 08:49:37 GMT", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        ("Sun Nov  6 08:49:37 1994", datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)),
        ("Sun, 06 Nov 1994 08:49:37 +0100", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:60 GMT", None),
        ("", None),
    ],
)
def test_a_date_has_three_forms(text: str, read: datetime | None) -> None:
    assert parse_http_date(text) == read


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)))  # noqa: DTZ001 - made aware below
def test_every_date_is_read_back(naive: datetime) -> None:
    moment = naive.replace(microsecond=0, tzinfo=UTC)
    assert parse_http_date(format_datetime(moment, usegmt=True)) == moment


@given(st.text() | st.text(alphabet="SunMoNv, -:0123456789GT", max_size=40))
def test_any_text_is_a_date_or_none(text: str) -> None:
    parse_http_date(text)


@given(st.lists(st.text() | st.binary() | st.integers(), max_size=4), st.booleans())
def test_a_made_tag_is_a_tag_and_the_same_each_time(parts: list[object], weak: bool) -> None:
    tag = etag_of(*parts, weak=weak)
    assert parse_entity_tags([tag]) == [tag]
    assert tag == etag_of(*parts, weak=weak)


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_other_parts_make_another_tag(some: list[str], others: list[str]) -> None:
    assert (etag_of(*some) == etag_of(*others)) == (some == others)
