from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest
import redis.exceptions
import sqlalchemy.exc
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from svc_infra.config import AppSettings, Settings
from svc_infra.errors import (
    ConfigurationError,
    MigrationRequiredError,
    NotFoundError,
    SvcInfraError,
    UnauthorizedError,
    UnavailableError,
    ValidationError,
    error_types,
)
from svc_infra.middleware.problem import MAX_INSTANCE_CHARS, as_problem, problem_type, render
from svc_infra.obs.context import Context, enter, leave
from svc_infra.wiring import Wiring
from tests.middleware.asgi import scope_of


def rendered(error: SvcInfraError, *, expose: bool = False, cause: BaseException | None = None, **more: Any) -> Any:
    _, _, body = render(error, scope=scope_of(path="/x"), expose=expose, cause=cause, **more)
    return json.loads(body)


def in_environment(name: str) -> Wiring:
    return Wiring(Settings(app=AppSettings(env=name)))


def test_the_librarys_own_errors_stay_themselves() -> None:
    error = NotFoundError("User", 7)
    assert as_problem(error) is error
    assert as_problem(ExceptionGroup("tasks", [ExceptionGroup("one", [error])])) is error
    assert as_problem(ExceptionGroup("tasks", [error, ValueError()])).status == 500


@pytest.mark.parametrize("kind", {kind.status: kind for kind in reversed(list(error_types()))}.values())
def test_starlettes_errors_become_ours_by_their_status(kind: type[SvcInfraError]) -> None:
    problem = as_problem(HTTPException(kind.status, "because"))
    assert (problem.status, problem.code, problem.detail) == (kind.status, kind.code, "because")


@pytest.mark.parametrize(
    ("status", "code", "title"),
    [
        (418, "i_m_a_teapot", "I'm a Teapot"),
        (410, "gone", "Gone"),
        (507, "insufficient_storage", "Insufficient Storage"),
        (499, "status_499", "Status 499"),
    ],
)
def test_a_status_of_which_we_have_no_error_keeps_its_own_name(status: int, code: str, title: str) -> None:
    problem = as_problem(HTTPException(status, "because"))
    assert (problem.status, problem.code, problem.title, problem.detail) == (status, code, title, "because")
    assert (SvcInfraError.status, SvcInfraError.code) == (500, "internal_error")


def test_a_detail_that_only_repeats_the_status_becomes_a_sentence() -> None:
    assert as_problem(HTTPException(404)).detail == "There is nothing here."
    assert as_problem(HTTPException(418)).detail == "I'm a Teapot."


def test_headers_of_starlettes_errors_are_kept_and_win() -> None:
    assert as_problem(HTTPException(405, headers={"Allow": "GET"})).headers == {"Allow": "GET"}
    assert as_problem(HTTPException(401)).headers == {"WWW-Authenticate": "Bearer"}
    assert as_problem(HTTPException(401, headers={"www-authenticate": "Basic"})).headers == {
        "www-authenticate": "Basic"
    }


def test_a_detail_that_is_no_text_becomes_the_list_of_errors() -> None:
    assert as_problem(HTTPException(400, {"field": "x"})).errors == ({"field": "x"},)  # type: ignore[arg-type]
    problem = as_problem(HTTPException(400, [{"field": "x"}, "y"]))  # type: ignore[arg-type]
    assert rendered(problem)["errors"] == [{"field": "x"}, {"detail": "y"}]


class OurOwnSqlError(sqlalchemy.exc.SQLAlchemyError):
    pass


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (sqlalchemy.exc.TimeoutError(), 503),
        (OurOwnSqlError("x"), 500),
        (redis.exceptions.ConnectionError("x"), 503),
        (TimeoutError(), 504),
        (ClientDisconnect(), 400),
        (KeyError("x"), 500),
    ],
)
def test_foreign_errors_are_translated(error: Exception, status: int) -> None:
    problem = as_problem(error)
    assert problem.status == status
    assert type(problem).__module__ == "svc_infra.errors"


@pytest.mark.parametrize("library", ["httpcore2", "httpx2"])
def test_errors_of_http_clients_are_translated(library: str) -> None:
    client = import_module(library)
    assert as_problem(client.ConnectTimeout("x")).status == 504
    assert as_problem(client.ConnectError("x")).status == 502


def test_a_problem_has_every_member_of_rfc_9457_and_ours() -> None:
    token = enter(Context(request_id="r-1", trace_id="t-1"))
    try:
        error = ValidationError(
            "Two values are wrong.", errors=[{"pointer": "#/a", "detail": "x"}], headers={"X-A": "1"}
        )
        status, headers, body = render(error, scope=scope_of(path="/orders/7"), expose=False, cause=error)
    finally:
        leave(token)
    assert status == 422
    assert dict(headers) == {
        b"content-type": b"application/problem+json",
        b"cache-control": b"no-store",
        b"x-a": b"1",
    }
    assert json.loads(body) == {
        "type": "/problems/validation_error",
        "title": "Validation Error",
        "status": 422,
        "detail": "Two values are wrong.",
        "instance": "/orders/7",
        "code": "validation_error",
        "errors": [{"pointer": "#/a", "detail": "x"}],
        "request_id": "r-1",
        "trace_id": "t-1",
    }
    assert problem_type("conflict") == "/problems/conflict"
    assert "errors" not in rendered(NotFoundError())


def test_in_prod_a_failure_of_ours_tells_nothing() -> None:
    with in_environment("prod").active():
        for cause in (
            KeyError("SECRET"),
            ConfigurationError("SECRET"),
            UnavailableError("SECRET", retry_after_seconds=3),
        ):
            problem = as_problem(cause)
            problem.errors = ({"detail": "SECRET"},)
            status, headers, body = render(problem, scope=scope_of(path="/x"), expose=False, cause=cause)
            assert status >= 500
            assert b"SECRET" not in body
            assert b"stack" not in body
    assert b"retry-after" in dict(headers)
    assert rendered(MigrationRequiredError("x"))["code"] == "internal_error"
    assert rendered(UnavailableError("x"))["code"] == "unavailable"


def test_elsewhere_an_unexpected_error_is_named_and_only_local_shows_its_stack() -> None:
    try:
        raise KeyError("postgresql://app:hunter2@db/app")
    except KeyError as error:
        cause = error
    for environment in ("local", "dev", "test"):
        with in_environment(environment).active():
            problem = rendered(as_problem(cause), expose=True, cause=cause)
        assert problem["detail"] == "KeyError: 'postgresql://app:[redacted]@db/app'"
        assert ("stack" in problem) is (environment == "local")
        assert "hunter2" not in json.dumps(problem)
    with in_environment("local").active():
        assert rendered(as_problem(cause), expose=True, cause=cause)["stack"][0].startswith("Traceback")
        expected = UnavailableError("The queue is full.")
        assert "stack" not in rendered(expected, expose=True, cause=expected)
        assert "stack" not in rendered(NotFoundError(), expose=True, cause=KeyError())


def test_further_members_are_shown_as_they_are() -> None:
    assert rendered(UnavailableError("x"), members={"checks": [1]})["checks"] == [1]


@pytest.mark.parametrize(
    ("path", "instance"), [("/%", "/%25"), ("/%%\U0010d37e", "/%25%25%F4%8D%8D%BE"), ("/%41", "/%2541")]
)
def test_the_instance_is_an_address_also_where_the_path_has_a_percent_sign(path: str, instance: str) -> None:
    _, _, body = render(NotFoundError(), scope=scope_of(path=path), expose=False, cause=None)
    assert json.loads(body)["instance"] == instance


def test_the_instance_is_a_path_within_bounds() -> None:
    _, _, body = render(NotFoundError(), scope=scope_of(path="/a b\n?x=1/" + "é" * 9000), expose=False, cause=None)
    instance = json.loads(body)["instance"]
    assert instance.startswith("/a%20b%0A%3Fx=1/%C3%A9")
    assert len(instance) < 6 * MAX_INSTANCE_CHARS


@settings(deadline=None)
@given(value=st.text(st.characters()))
def test_no_header_value_can_begin_another_header(value: str) -> None:
    _, headers, _ = render(
        UnauthorizedError(headers={"X-A": value}), scope=scope_of(path="/"), expose=False, cause=None
    )
    (header,) = [text for name, text in headers if name == b"x-a"]
    assert not set(header) & set(range(32))


@settings(deadline=None)
@given(what=st.text(st.characters()), extra=st.one_of(st.text(st.characters()), st.binary(), st.integers()))
def test_any_detail_makes_a_valid_document(what: str, extra: Any) -> None:
    error = ValidationError(what, errors=[{"value": extra}])
    assert json.loads(render(error, scope=scope_of(path=what), expose=True, cause=None)[2])["status"] == 422
