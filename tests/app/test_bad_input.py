"""Bad input gets one clear answer, which repeats none of it; so does a handler that breaks its own word."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import pytest
from fastapi import Body, Form, Query
from pydantic import AfterValidator, BaseModel, Json
from starlette.testclient import TestClient

from tests.app.answers import SECRET, is_problem
from tests.app.conftest import Factory


class Item(BaseModel):
    count: int
    tags: list[int] = []


def refuses_all(value: str) -> str:
    raise ValueError(f"{value} is refused")


@pytest.fixture(params=["prod", "local"])
def client(request: pytest.FixtureRequest, make: Factory) -> TestClient:
    """A client of an app that takes JSON and forms."""
    app = make(request.param)

    @app.post("/items/{item_id}")
    async def create(item_id: int, item: Item, limit: Annotated[int, Query(le=10)] = 1) -> Item:
        return item

    @app.post("/names")
    async def names(name: Annotated[str, AfterValidator(refuses_all), Body(embed=True)]) -> str:
        return name

    @app.post("/numbers")
    async def numbers(numbers: list[int]) -> int:
        return len(numbers)

    @app.post("/form")
    async def form(count: Annotated[int, Form()]) -> int:
        return count

    @app.post("/json")
    async def document(document: Annotated[Json[Any], Body(embed=True)]) -> Any:
        return document

    @app.post("/json-whole")
    async def whole(document: Annotated[Json[Any], Body()]) -> Any:
        return document

    @app.post("/raw")
    async def raw(body: Annotated[bytes, Body(max_length=3)]) -> int:
        return len(body)

    return TestClient(app)


def test_a_422_lists_every_value_that_is_wrong_and_repeats_none(client: TestClient) -> None:
    response = client.post(f"/items/{SECRET}?limit={SECRET}", json={"count": SECRET, "tags": [1, SECRET]})
    problem = is_problem(response, 422, "validation_error", f"/items/{SECRET}")
    assert [(error["loc"], error.get("pointer")) for error in problem["errors"]] == [
        (["path", "item_id"], None),
        (["query", "limit"], None),
        (["body", "count"], "#/count"),
        (["body", "tags", 1], "#/tags/1"),
    ]
    assert problem["detail"] == "4 values of the request are not acceptable."
    assert response.text.count(SECRET) == 1  # the path, which is the instance


def test_a_422_hides_messages_that_repeat_the_value(client: TestClient) -> None:
    response = client.post("/names", json={"name": SECRET})
    problem = is_problem(response, 422, "validation_error", "/names")
    assert [error["detail"] for error in problem["errors"]] == ["The value is not acceptable."]
    assert SECRET not in response.text


def test_a_422_lists_at_most_a_hundred_values(client: TestClient) -> None:
    problem = is_problem(client.post("/numbers", json=["x"] * 250), 422, "validation_error", "/numbers")
    assert len(problem["errors"]) == 100
    assert problem["detail"] == "250 values of the request are not acceptable, of which the first 100 are listed."


def test_a_422_about_a_form_has_no_pointers(client: TestClient) -> None:
    problem = is_problem(client.post("/form", data={"count": "x"}), 422, "validation_error", "/form")
    assert problem["errors"] == [
        {
            "loc": ["body", "count"],
            "detail": "Input should be a valid integer, unable to parse string as an integer",
            "type": "int_parsing",
        }
    ]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{bad", "The body is not valid JSON: it breaks at character 2."),
        (b'{"count": 1', "The body is not valid JSON: it breaks at character 12."),
    ],
)
def test_a_body_that_is_no_json_is_a_400(body: bytes, detail: str, client: TestClient) -> None:
    response = client.post("/items/1", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(response, 400, "bad_request", "/items/1")["detail"] == detail


@pytest.mark.parametrize(("path", "body"), [("/json", {"document": "{bad"}), ("/json-whole", "{bad")])
def test_a_value_that_should_hold_json_and_does_not_is_a_422(path: str, body: Any, client: TestClient) -> None:
    problem = is_problem(client.post(path, json=body), 422, "validation_error", path)
    assert [error["type"] for error in problem["errors"]] == ["json_invalid"]


@pytest.mark.parametrize("path", ["/items/1", "/items/x?limit=99", "/names", "/numbers"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_that_is_not_said_to_be_json_is_a_415(content_type: str | None, path: str, client: TestClient) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post(path, content=b'{"count": 1}', headers=headers)
    problem = is_problem(response, 415, "unsupported_media_type", path.partition("?")[0])
    assert problem["detail"] == "Send the body as JSON, with the header `Content-Type: application/json`."


def test_bytes_that_are_meant_to_be_bytes_are_judged_as_such(client: TestClient) -> None:
    response = client.post("/raw", content=b"12345", headers={"Content-Type": "text/plain"})
    problem = is_problem(response, 422, "validation_error", "/raw")
    assert [error["type"] for error in problem["errors"]] == ["bytes_too_long"]


def test_a_missing_body_is_a_422(client: TestClient) -> None:
    problem = is_problem(client.post("/items/1"), 422, "validation_error", "/items/1")
    assert problem["errors"] == [{"loc": ["body"], "detail": "Field required", "type": "missing"}]


def test_a_body_over_the_limit_is_a_413(make: Factory) -> None:
    app = make()
    app.add_api_route("/upload", lambda: None, methods=["POST"])
    response = TestClient(app).post("/upload", content=b"x" * (10 * 1024 * 1024 + 1))
    is_problem(response, 413, "payload_too_large", "/upload")


@pytest.mark.parametrize("env", ["prod", "local"])
def test_a_response_that_breaks_its_own_model_is_a_500_that_shows_no_value(
    env: str, make: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(env)

    @app.get("/items", response_model=list[Item])
    async def items() -> Any:
        return [{"count": 1}, {"count": SECRET}]

    with caplog.at_level(logging.ERROR):
        response = TestClient(app).get("/items")
    problem = is_problem(response, 500, "internal_error", "/items")
    assert ("response.1.count" in problem["detail"]) is (env == "local")
    assert SECRET not in response.text
    assert "response.1.count" in caplog.text
    assert SECRET not in caplog.text
