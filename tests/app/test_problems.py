"""Every error of the whole app is answered with a problem (RFC 9457), and in production none of them tells a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import redis.exceptions
import sqlalchemy as sa
import sqlalchemy.exc
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.testclient import TestClient

from svc_infra.errors import (
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitedError,
    SvcInfraError,
    UnauthorizedError,
    UnavailableError,
    ValidationError,
)
from tests.app.answers import SECRET, is_problem
from tests.app.conftest import Factory


class PlanLimitError(ConflictError):
    """The plan allows no more of these."""

    code = "plan_limit"
    title = "Plan Limit"


@dataclass(frozen=True)
class Case:
    """An error, the answer to it (its code may be another one in local), and whether the marker in it may be shown."""

    error: Callable[[], Exception]
    status: int
    code: str
    shown_in_prod: bool = False
    in_local: str | None = None


def sql_error(*statements: str) -> Callable[[], Exception]:
    """What SQLAlchemy raises for the last of these statements, each with the marker as its parameter."""

    def error() -> Exception:
        engine = sa.create_engine("sqlite://")
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("CREATE TABLE users (name TEXT UNIQUE)")
                for statement in statements:
                    connection.exec_driver_sql(statement, (SECRET,))
        except sqlalchemy.exc.SQLAlchemyError as error:
            return error
        finally:
            engine.dispose()
        pytest.fail("nothing was raised")

    return error


CASES = {
    "not found": Case(lambda: NotFoundError("User", SECRET), 404, "not_found", shown_in_prod=True),
    "validation": Case(lambda: ValidationError("Wrong."), 422, "validation_error"),
    "unauthorized": Case(UnauthorizedError, 401, "unauthorized"),
    "rate limited": Case(lambda: RateLimitedError(retry_after_seconds=3), 429, "rate_limited"),
    "unavailable": Case(lambda: UnavailableError(f"{SECRET} is down"), 503, "unavailable"),
    "deadline": Case(lambda: DeadlineExceededError(SECRET), 504, "deadline_exceeded"),
    "configuration": Case(lambda: ConfigurationError(SECRET), 500, "internal_error", in_local="configuration_error"),
    "internal": Case(lambda: SvcInfraError(SECRET, errors=[{"detail": SECRET}]), 500, "internal_error"),
    "the application's own": Case(PlanLimitError, 409, "plan_limit"),
    "HTTPException 403": Case(lambda: HTTPException(403, "No."), 403, "forbidden"),
    "HTTPException 418": Case(lambda: HTTPException(418, "Tea."), 418, "i_m_a_teapot"),
    "HTTPException 500": Case(lambda: HTTPException(500, SECRET), 500, "internal_error"),
    "HTTPException 503": Case(lambda: HTTPException(503, SECRET), 503, "unavailable"),
    "HTTPException with a mapping": Case(lambda: HTTPException(400, {"field": "name"}), 400, "bad_request"),
    "Starlette's HTTPException": Case(lambda: StarletteHTTPException(410), 410, "gone"),
    "a status that nobody knows": Case(lambda: HTTPException(499, "Odd."), 499, "status_499"),
    "ValueError": Case(lambda: ValueError(SECRET), 500, "internal_error"),
    "KeyError": Case(lambda: KeyError(SECRET), 500, "internal_error"),
    "RuntimeError": Case(lambda: RuntimeError(SECRET), 500, "internal_error"),
    "TimeoutError": Case(lambda: TimeoutError(SECRET), 504, "deadline_exceeded"),
    "a group of one": Case(lambda: ExceptionGroup(SECRET, [ValueError(SECRET)]), 500, "internal_error"),
    "a group of two": Case(lambda: ExceptionGroup(SECRET, [ValueError(SECRET), KeyError()]), 500, "internal_error"),
    "IntegrityError": Case(sql_error(*["INSERT INTO users VALUES (?)"] * 2), 409, "conflict"),
    "OperationalError": Case(sql_error("INSERT INTO nowhere VALUES (?)"), 500, "internal_error"),
    "SQLAlchemy's TimeoutError": Case(lambda: sqlalchemy.exc.TimeoutError(SECRET), 503, "unavailable"),
    "NoResultFound": Case(lambda: sqlalchemy.exc.NoResultFound(SECRET), 404, "not_found"),
    "redis ConnectionError": Case(lambda: redis.exceptions.ConnectionError(SECRET), 503, "unavailable"),
    "redis ResponseError": Case(lambda: redis.exceptions.ResponseError(SECRET), 500, "internal_error"),
    "httpx ConnectError": Case(lambda: httpx2.ConnectError(SECRET), 502, "upstream_error"),
    "httpx ReadTimeout": Case(lambda: httpx2.ReadTimeout(SECRET), 504, "deadline_exceeded"),
}


def raising(error: Callable[[], Exception]) -> dict[str, Callable[[FastAPI], None]]:
    """The places of an app from which an error can come."""

    async def dependency() -> None:
        raise error()

    async def before_yield() -> AsyncIterator[None]:
        raise error()
        yield

    async def after_yield() -> AsyncIterator[None]:
        yield
        raise error()

    def in_handler(app: FastAPI) -> None:
        @app.get("/raise")
        async def handler() -> None:
            raise error()

    def in_thread(app: FastAPI) -> None:
        @app.get("/raise")
        def handler() -> None:
            raise error()

    def in_a_dependency(app: FastAPI, dependency: Callable[..., Any] = dependency) -> None:
        @app.get("/raise", dependencies=[Depends(dependency, scope="function")])
        async def handler() -> str:
            return "fine"

    return {
        "handler": in_handler,
        "thread": in_thread,
        "dependency": in_a_dependency,
        "before yield": lambda app: in_a_dependency(app, before_yield),
        "after yield": lambda app: in_a_dependency(app, after_yield),
    }


PLACES = list(raising(Exception))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("env", ["prod", "local"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_from_everywhere_is_a_problem(case: Case, env: str, place: str, make: Factory) -> None:
    app = make(env)
    raising(case.error)[place](app)
    response = TestClient(app).get("/raise?token=marker-7f3a-secret-query")
    code = case.in_local if env == "local" and case.in_local else case.code
    is_problem(response, case.status, code, "/raise")
    assert "secret-query" not in response.text
    if env == "prod" and not case.shown_in_prod:
        assert SECRET not in response.text


def test_the_headers_of_an_error_are_kept(make: Factory) -> None:
    app = make()
    errors = {
        "retry": RateLimitedError(retry_after_seconds=3),
        "login": UnauthorizedError(),
        "challenge": HTTPException(401, headers={"WWW-Authenticate": "Basic"}),
    }

    @app.get("/{kind}")
    async def raises(kind: str) -> None:
        raise errors[kind]

    client = TestClient(app)
    assert int(client.get("/retry").headers["retry-after"]) >= 3
    assert client.get("/login").headers["www-authenticate"] == "Bearer"
    assert client.get("/challenge").headers["www-authenticate"] == "Basic"


def test_a_local_500_shows_what_was_raised_and_where(make: Factory) -> None:
    app = make("local")
    raising(lambda: ValueError("the price is negative"))["handler"](app)
    problem = is_problem(TestClient(app).get("/raise"), 500, "internal_error", "/raise")
    assert problem["detail"] == "ValueError: the price is negative"
    assert any("test_problems.py" in line for line in problem["stack"])


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_an_address_that_is_not_there_is_a_problem_for_every_method(method: str, make: Factory) -> None:
    is_problem(TestClient(make()).request(method, "/nowhere"), 404, "not_found", "/nowhere")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_a_method_that_is_not_there_is_a_problem_that_names_those_that_are(method: str, make: Factory) -> None:
    app = make()

    @app.get("/things")
    async def things() -> None: ...

    response = TestClient(app).request(method, "/things")
    assert response.headers["allow"] == "GET"
    if method == "HEAD":
        assert (response.status_code, response.content) == (405, b"")
        assert response.headers["content-type"] == "application/problem+json"
    else:
        is_problem(response, 405, "method_not_allowed", "/things")


@pytest.mark.parametrize("place", ["on the app", "on an included router", "in a mounted app"])
def test_a_method_that_is_not_there_names_those_of_every_route_of_the_address(place: str, make: Factory) -> None:
    app, router = make(), APIRouter()
    router.add_api_route("/things/{name}", lambda name: None, methods=["GET"])
    router.add_api_route("/things/{number}", lambda number: None, methods=["POST", "PUT"])
    router.add_api_route("/others/{name}", lambda name: None, methods=["DELETE"])
    prefix = "" if place == "on the app" else "/v1"
    if place == "in a mounted app":
        mounted = FastAPI()
        mounted.include_router(router)
        app.mount(prefix, mounted)
        app.add_api_route("/things/7", lambda: None, methods=["PATCH"])  # at another address, below the root
    else:
        app.include_router(router, prefix=prefix)
    response = TestClient(app).delete(f"{prefix}/things/7")
    assert (response.status_code, response.headers.get_list("allow")) == (405, ["GET, POST, PUT"])


@pytest.mark.parametrize("status", [204, 304, 307])
def test_an_exception_that_is_no_error_is_answered_as_it_is(status: int, make: Factory) -> None:
    app = make()

    @app.get("/elsewhere")
    async def elsewhere() -> None:
        raise HTTPException(status, headers={"Location": "/there"})

    response = TestClient(app).get("/elsewhere", follow_redirects=False)
    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["location"] == "/there"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_type_of_every_answer_has_a_page(case: Case, make: Factory) -> None:
    app = make("prod")
    raising(case.error)["handler"](app)
    client = TestClient(app)
    assert client.get(client.get("/raise").json()["type"]).status_code == 200
