"""Problems are the documented bodies of every 4xx and 5xx."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, WebSocket
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.errors import ValidationError
from svc_infra.middleware import RateLimitMiddleware
from svc_infra.middleware.conditional import Conditional
from tests.app.conftest import settings

BODY = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


class Item(BaseModel):
    name: str


class Problem(BaseModel):
    """The application's own."""

    mine: str


@pytest.fixture
def app() -> FastAPI:
    return create_app(settings=settings())


def responses(app: FastAPI, path: str = "/items", method: str = "post") -> dict[str, Any]:
    documented: dict[str, Any] = app.openapi()["paths"][path][method]["responses"]
    return documented


def test_every_error_of_every_operation_is_a_problem(app: FastAPI) -> None:
    @app.post("/items")
    async def create(item: Item) -> Item:
        return item

    @app.get("/items")
    async def read() -> list[Item]:
        return []

    shared = app.openapi()["components"]["responses"]
    for method in ("get", "post"):
        for status, response in responses(app, method=method).items():
            resolved = shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
            assert (resolved["content"] == BODY) is (status != "200")
            assert resolved["description"]


def statuses(app: FastAPI, path: str, method: str = "post") -> set[str]:
    return set(responses(app, path, method)) - {"200", "400", "413", "414", "431", "4XX", "500", "503", "504", "5XX"}


def test_the_statuses_follow_from_what_an_operation_takes(app: FastAPI) -> None:
    login = HTTPBearer(auto_error=False)
    app.add_api_route("/plain", lambda: None, methods=["GET", "POST"])
    app.add_api_route("/query", lambda limit=0: None, methods=["GET"])
    app.add_api_route("/items/{item_id}", lambda item_id: None, methods=["GET"])
    app.add_api_route("/me", lambda: None, methods=["GET"], dependencies=[Depends(login)])
    app.add_api_route("/versions", lambda: None, methods=["GET", "PUT"], dependencies=[Depends(Conditional)])

    @app.post("/items")
    async def create(item: Item) -> None: ...

    assert statuses(app, "/plain", "get") == set()
    assert statuses(app, "/plain") == {"409"}
    assert statuses(app, "/query", "get") == {"422"}
    assert statuses(app, "/items/{item_id}", "get") == {"404", "422"}
    assert statuses(app, "/me", "get") == {"401", "403"}
    assert statuses(app, "/versions", "get") == {"304", "412"}
    assert statuses(app, "/versions", "put") == {"409", "412", "428"}
    assert statuses(app, "/items") == {"408", "409", "415", "422"}


def test_a_limit_of_the_app_is_part_of_every_operation(app: FastAPI) -> None:
    app.add_api_route("/plain", lambda: None, methods=["GET"])
    app.add_middleware(RateLimitMiddleware)
    assert statuses(app, "/plain", "get") == {"429"}


def test_the_schemas_of_fastapi_that_are_no_longer_used_are_gone(app: FastAPI) -> None:
    @app.post("/items")
    async def create(item: Item) -> Item:
        return item

    assert set(app.openapi()["components"]["schemas"]) == {"Item", "Problem"}


def test_every_reference_leads_somewhere(app: FastAPI) -> None:
    @app.post("/items")
    async def create(item: Item) -> Item:
        return item

    @app.webhooks.post("item-created")
    async def item_created(item: Item) -> None: ...

    document = json.dumps(app.openapi())
    names = set(app.openapi()["components"]["schemas"])
    referred = {part.partition('"')[0] for part in document.split("#/components/schemas/")[1:]}
    assert {"Problem", "Item", "HTTPValidationError"} <= referred <= names


def test_an_error_that_the_application_documents_is_kept_and_given_a_body_where_it_has_none(app: FastAPI) -> None:
    class Taken(BaseModel):
        by: str

    @app.post("/items", responses={404: {"description": "No such shop."}, 409: {"model": Taken}})
    async def create() -> None: ...

    assert responses(app)["404"] == {"description": "No such shop.", "content": BODY}
    assert responses(app)["409"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Taken"}


def test_a_model_of_the_application_may_be_called_problem(app: FastAPI) -> None:
    @app.post("/items")
    async def create(problem: Problem) -> None: ...

    schemas = app.openapi()["components"]["schemas"]
    assert set(schemas["Problem"]["properties"]) == {"mine"}
    reference = responses(app)["4XX"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/ProblemDetails"
    assert "request_id" in schemas["ProblemDetails"]["properties"]


def test_two_apps_do_not_share_the_schema_of_problems() -> None:
    one, two = create_app(settings=settings()), create_app(settings=settings())
    one.openapi()["components"]["schemas"]["Problem"]["title"] = "changed"
    assert two.openapi()["components"]["schemas"]["Problem"]["title"] == "Problem"


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value has the types that a schema asks for; enough of JSON Schema for the one of problems."""
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    kinds = {"object": dict, "array": list, "string": str, "integer": int}
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema.get("required", ())) <= set(value) <= set(known) and all(
            conforms(member, known[name]) for name, member in value.items()
        )
    return not isinstance(value, list) or all(conforms(entry, schema["items"]) for entry in value)


@pytest.mark.parametrize("path", ["/items", "/nowhere", "/broken", "/refused"])
def test_the_answers_are_as_documented(path: str, app: FastAPI) -> None:
    @app.post("/items")
    async def create(item: Item) -> None: ...

    @app.post("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    @app.post("/refused")
    async def refused() -> None:
        raise ValidationError("No.", errors=[{"detail": "too long", "loc": ["body", 1], "pointer": "#/1"}])

    answer = TestClient(app).post(path, json={}).json()
    schema = app.openapi()["components"]["schemas"]["Problem"]
    assert conforms(answer, schema)
    assert not conforms({**answer, "status": "400"}, schema)
    assert not conforms({name: member for name, member in answer.items() if name != "code"}, schema)


def test_websockets_and_pages_are_not_in_the_document(app: FastAPI) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None: ...

    assert app.openapi()["paths"] == {}


def test_conditional_operations_name_the_headers_that_they_read(app: FastAPI) -> None:
    needed = [Depends(Conditional)]
    app.add_api_route("/versions", lambda: None, methods=["GET", "PUT"], dependencies=needed)
    app.add_api_route("/hidden", lambda: None, methods=["GET"], dependencies=needed, include_in_schema=False)
    app.add_api_route("/plain", lambda: None, methods=["GET"])

    @app.put("/own", dependencies=needed)
    async def own(if_match: Annotated[str, Header(description="Mine.")]) -> None: ...

    paths = app.openapi()["paths"]

    def headers(path: str, method: str) -> list[str]:
        return [one["name"] for one in paths[path][method].get("parameters", ())]

    assert headers("/versions", "get") == ["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"]
    assert headers("/versions", "put") == ["If-Match", "If-None-Match", "If-Unmodified-Since"]
    assert headers("/own", "put") == ["if-match", "If-None-Match", "If-Unmodified-Since"]
    assert headers("/plain", "get") == []
    assert not any(one["required"] for one in paths["/versions"]["put"]["parameters"])
    assert list(paths["/versions"]["get"]["responses"]["200"]["headers"]) == ["ETag", "Last-Modified"]
    assert "headers" not in paths["/plain"]["get"]["responses"]["200"]
    unchanged = app.openapi()["components"]["responses"]["NotModified"]
    assert list(unchanged["headers"]) == ["ETag", "Last-Modified", "X-Request-Id"]
    assert "422" not in paths["/versions"]["get"]["responses"]  # a header that cannot be read is no 422
