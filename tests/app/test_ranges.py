"""Parts of files: what cannot be given is refused with a problem, also where Starlette answers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from svc_infra import create_app
from svc_infra.app.ranges import NO_SUCH_PART
from tests.app.answers import is_problem
from tests.app.conftest import settings as settings_of

CONTENT = b"0123456789"


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    (tmp_path / "ten.txt").write_bytes(CONTENT)
    made = create_app(settings=settings_of("prod"))

    @made.get("/file")
    async def file() -> FileResponse:
        return FileResponse(tmp_path / "ten.txt")

    @made.get("/refusal")
    async def refusal() -> PlainTextResponse:
        return PlainTextResponse("not today", status_code=400, headers={"X-Own": "1"})

    @made.get("/parts")
    async def parts() -> StreamingResponse:
        return StreamingResponse(iter(["not ", "today"]), status_code=400, media_type="text/plain")

    made.mount("/static", StaticFiles(directory=tmp_path))
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


@pytest.mark.parametrize("path", ["/file", "/static/ten.txt"])
@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0", "bytes=0-1,99-"])
def test_a_part_that_there_is_not_is_a_416_that_says_how_long_it_is(path: str, asked: str, client: TestClient) -> None:
    answer = client.get(path, headers={"Range": asked})
    problem = is_problem(answer, 416, "range_not_satisfiable", path)
    assert problem["detail"] == NO_SUCH_PART
    assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("path", ["/file", "/static/ten.txt"])
@pytest.mark.parametrize("asked", ["", "bytes", "bytes=", "bytes=-", "bytes=x-y", "bytes=5-2", "=0-1", "\xff"])
def test_a_range_that_is_none_is_a_400(path: str, asked: str, client: TestClient) -> None:
    answer = client.get(path, headers={b"Range": asked.encode("latin-1")})
    is_problem(answer, 400, "bad_request", path)


@pytest.mark.parametrize("path", ["/file", "/static/ten.txt"])
@pytest.mark.parametrize("headers", [{}, {"If-Range": "ETAG"}])
def test_a_range_in_a_unit_that_nobody_knows_is_none(path: str, headers: dict[str, str], client: TestClient) -> None:
    headers = {name: client.get(path).headers[value] for name, value in headers.items()}
    answer = client.get(path, headers={**headers, "Range": "items=0-1"})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_handler_may_know_a_unit_of_its_own(app: FastAPI, client: TestClient) -> None:
    @app.get("/items")
    async def items(request: Request) -> str:
        return request.headers["range"]

    assert client.get("/items", headers={"Range": "items=0-24"}).json() == "items=0-24"


@pytest.mark.parametrize("path", ["/file", "/static/ten.txt"])
def test_parts_that_there_are_are_given(path: str, client: TestClient) -> None:
    assert client.get(path).content == CONTENT
    answer = client.get(path, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert client.get(path, headers={"Range": "bytes=0-1,4-5"}).headers["content-type"].startswith("multipart/")


def test_head_has_the_headers_of_the_problem(client: TestClient) -> None:
    answer = client.head("/static/ten.txt", headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.headers["content-type"]) == (416, "application/problem+json")
    assert answer.content == b""


def test_without_range_a_text_is_the_applications_own(client: TestClient) -> None:
    assert client.get("/refusal").text == "not today"
    assert client.get("/parts", headers={"Range": "bytes=0-1"}).text == "not today"


def test_what_the_answer_said_is_kept(client: TestClient) -> None:
    answer = client.get("/refusal", headers={"Range": "bytes=0-1"})
    assert is_problem(answer, 400, "bad_request", "/refusal")["detail"] == "not today"
    assert answer.headers["x-own"] == "1"
