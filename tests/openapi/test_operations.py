"""Operations are called by their address, and no two of them have the same name or address."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.errors import ConfigurationError
from svc_infra.openapi import add_openapi
from svc_infra.openapi.operations import operation_id
from tests.app.conftest import settings


async def first() -> None: ...


async def second() -> None: ...


@pytest.fixture
def app() -> FastAPI:
    return create_app(settings=settings())


def ids(app: FastAPI) -> set[str]:
    paths = app.openapi()["paths"].values()
    return {operation["operationId"] for path in paths for operation in path.values()}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/projects/{project_id}/tickets", "get_projects_by_project_id_tickets"),
        ("POST", "/", "post_root"),
        ("DELETE", "/_admin/api-keys/{key}", "delete_admin_api_keys_by_key"),
        ("GET", "/files/{path:path}", "get_files_by_path"),
        ("GET", "/files/{name}.{suffix}", "get_files_by_name_by_suffix"),
        ("PUT", "/users/{id}/", "put_users_by_id"),
    ],
)
def test_an_operation_is_called_by_its_method_and_path(method: str, path: str, expected: str) -> None:
    assert operation_id([method], path) == expected


@given(st.sampled_from(["GET", "PATCH"]), st.text(alphabet="ab{}/-_.é ", max_size=20))
def test_every_name_is_an_identifier(method: str, path: str) -> None:
    assert re.fullmatch(r"[a-z]\w*", operation_id([method], path))


def test_names_do_not_depend_on_functions_or_modules(app: FastAPI) -> None:
    app.get("/things")(first)
    app.post("/things")(first)
    app.get("/things/{thing_id}")(second)
    assert ids(app) == {"get_things", "post_things", "get_things_by_thing_id"}


def test_a_name_that_a_route_was_given_is_kept(app: FastAPI) -> None:
    app.get("/things", operation_id="listThings")(first)
    app.include_router(APIRouter(generate_unique_id_function=lambda route: f"own_{route.name}"), prefix="/empty")
    foreign = APIRouter(generate_unique_id_function=lambda route: f"own_{route.name}")
    foreign.get("/foreign")(second)
    app.include_router(foreign)
    assert ids(app) == {"listThings", "own_second"}


def test_the_names_of_the_user_are_kept_when_the_app_makes_them() -> None:
    app = create_app(settings=settings(), generate_unique_id_function=lambda route: route.name)
    app.get("/things")(first)
    assert ids(app) == {"first"}


def test_each_method_of_one_route_has_its_own_name(app: FastAPI) -> None:
    app.api_route("/things", methods=["POST", "GET", "HEAD"])(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(app) == {"get_things", "head_things", "post_things"}
    with TestClient(app) as client:
        assert client.get("/things").status_code == 200


def test_the_document_is_made_once_for_the_same_routes(app: FastAPI) -> None:
    app.get("/things")(first)
    document = app.openapi()
    assert app.openapi() is document
    app.get("/others")(second)
    assert set(app.openapi()["paths"]) == {"/things", "/others"}


def refused(app: FastAPI) -> str:
    """What the app says when it refuses to start."""
    with pytest.raises(ConfigurationError) as raised, TestClient(app):
        pytest.fail("started")
    return str(raised.value)


def test_two_operations_of_the_same_name_keep_the_app_from_starting(app: FastAPI) -> None:
    app.get("/a-b")(first)
    app.get("/a/b")(second)
    message = refused(app)
    assert f"GET /a-b ({__name__}.first)" in message
    assert f"GET /a/b ({__name__}.second)" in message
    assert "'get_a_b'" in message
    assert "operation_id" in message


def test_two_operations_that_were_given_the_same_name_keep_the_app_from_starting(app: FastAPI) -> None:
    app.get("/a", operation_id="same")(first)
    router = APIRouter()
    router.get("/b", operation_id="same")(second)
    app.include_router(router, prefix="/v1")
    assert "GET /v1/b" in refused(app)


@pytest.mark.parametrize("options", [{}, {"operation_id": "another"}, {"include_in_schema": False}])
def test_two_operations_of_the_same_address_keep_the_app_from_starting(app: FastAPI, options: dict[str, Any]) -> None:
    app.get("/a")(first)
    app.get("/a", **options)(second)
    message = refused(app)
    assert f"GET /a ({__name__}.first) and GET /a ({__name__}.second) have the same address" in message


def test_a_router_that_is_included_twice_keeps_the_app_from_starting(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/a")(first)
    app.include_router(router)
    app.include_router(router)
    assert "include its router only once" in refused(app)


def test_a_router_may_be_included_under_two_prefixes_and_two_methods_may_share_a_path(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/a")(first)
    router.post("/a")(first)
    app.include_router(router, prefix="/v1")
    app.include_router(router, prefix="/v2")
    with TestClient(app) as client:
        assert client.get("/v2/a").status_code == 200
    assert ids(app) == {"get_v1_a", "post_v1_a", "get_v2_a", "post_v2_a"}


def test_hidden_operations_may_share_a_name_but_not_an_address(app: FastAPI) -> None:
    app.get("/a")(first)
    app.get("/a/", include_in_schema=False)(first)
    with TestClient(app) as client:
        assert client.get("/a/").status_code == 200


def test_a_plain_app_can_be_documented_too() -> None:
    app = FastAPI()
    add_openapi(app)
    add_openapi(app)
    app.get("/things/{thing_id}")(first)
    with TestClient(app) as client:
        assert ids(app) == {"get_things_by_thing_id"}
        assert "cdn" not in client.get("/docs").text
