"""The app that both factories make: what it serves, what it keeps of the user's own, and what it shares with others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from svc_infra import create_app, easy_service_app
from svc_infra.errors import ConfigurationError
from svc_infra.middleware import LoggingMiddleware, RateLimitMiddleware, RequestIdMiddleware
from svc_infra.obs.metrics import Metrics
from svc_infra.wiring import Part, current_wiring, wiring_of
from tests.app.conftest import Factory, settings


def test_a_new_app_serves_its_probes_metrics_and_documents(make: Factory) -> None:
    with TestClient(make()) as client:
        for path in ("/", "/docs", "/redoc", "/openapi.json", "/problems", "/_ops/live", "/_ops/ready", "/metrics"):
            assert client.get(path).status_code == 200, path


def test_an_app_answers_without_its_lifespan(make: Factory) -> None:
    app = make()

    @app.get("/ping")
    async def ping() -> str:
        return "pong"

    assert TestClient(app).get("/ping").json() == "pong"


def test_probes_and_metrics_can_be_left_out(make: Factory) -> None:
    client = TestClient(make(probes=False, observability=False))
    assert client.get("/_ops/live").status_code == 404
    assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize(
    ("env", "setting", "docs", "served"),
    [
        ("local", None, None, True),
        ("dev", None, None, True),
        ("test", None, None, True),
        ("prod", None, None, False),
        ("prod", True, None, True),
        ("prod", False, True, True),
        ("local", False, None, False),
        ("local", True, False, False),
    ],
)
def test_documents_are_served_outside_of_prod_unless_something_says_otherwise(
    env: str, setting: bool | None, docs: bool | None, served: bool, make: Factory
) -> None:
    client = TestClient(make(settings=settings(env, docs=setting), docs=docs))
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (client.get(path).status_code == 200) is served, path
    assert client.get("/problems/not_found").status_code == 200


def test_name_and_release_come_from_the_arguments_before_the_settings() -> None:
    app = create_app(name="billing", settings=settings(name="shop", release="7"))
    assert (app.title, app.version) == ("billing", "7")
    assert wiring_of(app).settings.app.name == "billing"
    app = easy_service_app(name="orders", release="8", settings=settings(name="shop", release="7"))
    assert (app.title, app.version) == ("orders", "8")


def test_settings_come_from_the_environment_when_they_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_NAME", "from-the-environment")
    monkeypatch.setenv("APP_ENV", "production")
    app = create_app()
    assert app.title == "from-the-environment"
    assert app.openapi_url is None


def test_what_fastapi_takes_is_passed_on(make: Factory) -> None:
    app = make(title="Shop API", description="Sells.", docs_url="/reference", redoc_url=None)
    client = TestClient(app)
    assert client.get("/openapi.json").json()["info"] == {
        "title": "Shop API",
        "description": "Sells.",
        "version": "1.2.3",
    }
    assert client.get("/reference").status_code == 200
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_debug_is_refused_because_it_answers_with_tracebacks(make: Factory) -> None:
    with pytest.raises(ConfigurationError, match="debug answers with tracebacks"):
        make(debug=True)


def test_the_lifespan_of_the_user_runs_inside_that_of_the_rooms_and_its_state_reaches_requests(make: Factory) -> None:
    diary: list[str] = []

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        diary.append("room starts")
        yield
        diary.append("room stops")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        diary.append("startup")
        yield {"greeting": "hello"}
        diary.append("shutdown")

    app = make(lifespan=lifespan)
    wiring_of(app).add(Part("room", run=room))

    @app.get("/greeting")
    async def greeting(request: Request) -> str:
        return str(request.state.greeting)

    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/greeting").json() == "hello"
    assert diary == ["room starts", "startup", "shutdown", "room stops"] * 2


def test_startup_handlers_of_included_routers_run_inside_the_rooms(make: Factory) -> None:
    diary: list[str] = []

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        diary.append("room starts")
        yield
        diary.append("room stops")

    @asynccontextmanager
    async def router_lifespan(app: Any) -> AsyncIterator[None]:
        diary.append("router starts")
        yield
        diary.append("router stops")

    app = make(routers=[APIRouter(lifespan=router_lifespan)])
    wiring_of(app).add(Part("room", run=room))
    with TestClient(app):
        pass
    assert diary == ["room starts", "router starts", "router stops", "room stops"]


def test_two_apps_share_nothing(make: Factory) -> None:
    apps = [make(env, name=name) for name, env in (("one", "local"), ("two", "prod"))]
    one, two = (wiring_of(app) for app in apps)
    assert one is not two
    assert (one.settings.app.name, two.settings.app.name) == ("one", "two")
    assert one.get(Metrics) is not two.get(Metrics)

    @apps[0].get("/only-here")
    async def only_here() -> str:
        wiring = current_wiring()
        return wiring.settings.app.name if wiring else "none"

    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        assert first.get("/only-here").json() == "one"
        assert second.get("/only-here").status_code == 404
        assert list(first.get("/openapi.json").json()["paths"]) == ["/only-here"]
    assert apps[1].openapi()["paths"] == {}


class Tag:
    """A middleware of the user's own."""

    def __init__(self, app: ASGIApp, name: str, fails: bool = False) -> None:
        self.app = app
        self.name = name
        self.fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.fails:
            raise RuntimeError("the middleware broke")

        async def tagged(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-passed", self.name.encode()))
            await send(message)

        await self.app(scope, receive, tagged)


def test_the_last_middleware_added_is_the_outermost_and_the_edge_is_around_all(make: Factory) -> None:
    app = make()
    app.add_middleware(Tag, name="first")
    app.add_middleware(Tag, name="second")
    response = TestClient(app).get("/problems")
    assert response.headers.get_list("x-passed") == ["first", "second"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("env", ["prod", "local"])
def test_an_error_in_a_middleware_of_the_user_is_a_problem(env: str, make: Factory) -> None:
    app = make(env)
    app.add_middleware(Tag, name="broken", fails=True)
    response = TestClient(app).get("/problems")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert ("the middleware broke" in response.text) is (env == "local")


def test_known_errors_get_the_headers_of_the_users_middleware(make: Factory) -> None:
    app = make()
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.test"])
    app.add_middleware(GZipMiddleware, minimum_size=1)
    response = TestClient(app).get("/nowhere", headers={"Origin": "https://shop.test"})
    assert response.json()["code"] == "not_found"
    assert response.headers["access-control-allow-origin"] == "https://shop.test"
    assert response.headers["content-encoding"] == "gzip"


def test_a_function_middleware_of_the_user_sees_problems_and_may_answer_itself(make: Factory) -> None:
    app = make()
    seen: list[int] = []

    @app.middleware("http")
    async def watch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        seen.append(response.status_code)
        return response

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    client = TestClient(app)
    assert client.get("/nowhere").json()["code"] == "not_found"
    assert client.get("/broken").json()["code"] == "internal_error"
    assert seen == [404]


@pytest.mark.parametrize("way", ["argument", "decorator"])
def test_exception_handlers_of_the_user_win(way: str, make: Factory) -> None:
    class TeapotError(Exception):
        pass

    async def short_and_stout(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"handled": type(error).__name__}, status_code=418)

    kinds: list[Any] = [TeapotError, 404, Exception]
    app = make(exception_handlers=dict.fromkeys(kinds, short_and_stout)) if way == "argument" else make()
    if way == "decorator":
        for kind in kinds:
            app.exception_handler(kind)(short_and_stout)

    @app.get("/teapot")
    async def teapot() -> None:
        raise TeapotError

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError

    client = TestClient(app)
    assert client.get("/teapot").json() == {"handled": "TeapotError"}
    assert client.get("/nowhere").json() == {"handled": "HTTPException"}
    assert client.get("/broken").json() == {"handled": "KeyError"}


def test_dependencies_can_be_overridden(make: Factory) -> None:
    app = make()

    async def user() -> str:
        return "real"

    @app.get("/me")
    async def me(name: str = Depends(user)) -> str:
        return name

    app.dependency_overrides[user] = lambda: "fake"
    assert TestClient(app).get("/me").json() == "fake"


def test_an_app_whose_part_cannot_start_does_not_start(make: Factory) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ConfigurationError("SQL_URL is wrong.")
        yield

    app = make()
    wiring_of(app).add(Part("broken", run=broken))
    with pytest.raises(ConfigurationError, match="SQL_URL is wrong"), TestClient(app):
        pytest.fail("started")


def test_the_middleware_of_the_documentation_can_be_added(make: Factory) -> None:
    app = make()
    app.add_middleware(RateLimitMiddleware, rate="2/minute")
    app.add_middleware(LoggingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    client = TestClient(app)
    responses = [client.get("/problems", headers={"X-Request-Id": "from-the-client"}) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[2].json()["code"] == "rate_limited"
    assert {response.headers["x-request-id"] for response in responses} == {"from-the-client"}
