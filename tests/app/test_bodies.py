"""Bodies that Python can read and nobody can pass on are refused before a handler has them, wherever they are read."""

from __future__ import annotations

import codecs
import json
from encodings.aliases import aliases
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, FastAPI, Form, HTTPException, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra import create_app
from svc_infra.app.bodies import MAX_NESTING, Bodies, check_json
from tests.app.answers import is_problem
from tests.app.conftest import settings as settings_of
from tests.middleware.asgi import call

JSON = {"Content-Type": "application/json"}
PATHS = ["/items", "/anything", "/undeclared", "/by-hand", "/elsewhere", "/mounted"]
"""Where a body is read by a model, as anything, without a model of the answer, by hand, on a plain router, mounted."""


class Item(BaseModel):
    name: str
    price: float = 1


async def by_hand(request: Request) -> JSONResponse:
    return JSONResponse(await request.json())


@pytest.fixture(scope="module")
def app() -> FastAPI:
    made = create_app(settings=settings_of("prod"))
    elsewhere = APIRouter()

    @made.post("/items")
    async def create(item: Item) -> Item:
        return item

    @made.post("/anything")
    async def anything(document: Annotated[Any, Body()]) -> Any:
        return document

    @made.post("/undeclared")
    async def undeclared(document: Annotated[Any, Body()]):  # type: ignore[no-untyped-def]
        return document

    @elsewhere.post("/elsewhere")
    async def echoed(document: dict[str, Any]) -> dict[str, Any]:
        return document

    @made.post("/form")
    async def form(name: Annotated[str, Form()]) -> str:
        return name

    @made.post("/bytes")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @made.get("/texts/{text}")
    async def text(text: str, q: str) -> list[str]:
        return [text, q]

    made.add_route("/by-hand", by_hand, methods=["POST"])
    made.include_router(elsewhere)
    made.mount("/mounted", Starlette(routes=[Route("/", by_hand, methods=["POST"])]))
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"name": "a", "deep": ' + opening * depth + b"1" + closing * depth + b"}"


NO_JSON = "The body is not valid JSON: "
TOO_DEEP = "The body nests deeper than 100 levels."
NOT_JSON = [
    (b'{"name": "a", "price": NaN}', f"{NO_JSON}NaN is no number in it."),
    (b'{"name": "a", "price": -Infinity}', f"{NO_JSON}-Infinity is no number in it."),
    (b'{"name": "a\xed\xa0\x80"}', f"{NO_JSON}it is not UTF-8 at byte 12."),
    (b'{"name": "\xff"}', f"{NO_JSON}it is not UTF-8 at byte 11."),
    ('{"name": "a"}'.encode("utf-16"), f"{NO_JSON}it is not UTF-8 at byte 1."),
    ('{"name": "a"}'.encode("utf-16-le"), f"{NO_JSON}it breaks at character 2."),
    (b'{"name": "a"', f"{NO_JSON}it breaks at character 13."),
    (b'{"name": "a"}{}', f"{NO_JSON}it breaks at character 14."),
    (b'{"name": "\n"}', f"{NO_JSON}it breaks at character 11."),
    (b'{"name": 1' + b"0" * 5_000 + b"}", "The body has a whole number with too many digits."),
    (nested(MAX_NESTING), TOO_DEEP),
    (nested(900), TOO_DEEP),
    (nested(5_000, b'{"a":', b"}"), TOO_DEEP),
    (b"[" * 100_000, TOO_DEEP),
    (nested(100_000), TOO_DEEP),
]
NOT_ACCEPTABLE = [
    (b'{"name": "\\ud800"}', "/name", "string_unicode"),
    (b'{"name": "a \\uDC00 b"}', "/name", "string_unicode"),
    (b'{"name": "\\udc00\\ud800"}', "/name", "string_unicode"),
    (b'{"name": "\\\\\\ud83d\\\\ude00"}', "/name", "string_unicode"),
    (b'{"name": "a", "more": [1, {"x/y": "\\ud800"}]}', "/more/1/x~1y", "string_unicode"),
    (b'{"name": "a", "more": {"\\ud800": 1}}', "/more", "string_unicode"),
    (b'{"name": "a", "price": 1e400}', "/price", "finite_number"),
    (b'{"name": "a", "price": [-1E+999]}', "/price/0", "finite_number"),
    (b'{"name": "a", "price": ' + b"9" * 400 + b".5}", "/price", "finite_number"),
]
ACCEPTED = [
    b'{"name": "\\ud83d\\ude00"}',
    b'{"name": "\\\\ud800"}',
    b'{"name": "NaN Infinity 1e400"}',
    b'\xef\xbb\xbf{"name": "a"}',
    b'{"name": "\\u0000"}',
    b'{"name": "a", "big": 1' + b"0" * 400 + b"}",
    nested(MAX_NESTING - 1),
    nested(MAX_NESTING - 1, b'{"a":', b"}"),
    b'{"name": "a", "flat": [' + b"[]," * 1000 + b"[]]}",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "detail"), NOT_JSON)
def test_what_is_no_json_is_a_400_wherever_it_is_read(body: bytes, detail: str, path: str, client: TestClient) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert is_problem(answer, 400, "bad_request", answer.request.url.path)["detail"] == detail


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "pointer", "kind"), NOT_ACCEPTABLE)
def test_what_cannot_be_passed_on_is_a_422_that_names_the_place(
    body: bytes, pointer: str, kind: str, path: str, client: TestClient
) -> None:
    answer = client.post(path, content=body, headers=JSON)
    errors = is_problem(answer, 422, "validation_error", answer.request.url.path)["errors"]
    assert [(error["pointer"], error["type"]) for error in errors] == [(f"#{pointer}", kind)]
    assert errors[0]["loc"][0] == "body"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", ACCEPTED)
def test_everything_else_is_answered(body: bytes, path: str, client: TestClient) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == json.loads(body)["name"]


def test_the_first_hundred_of_many_places_are_named(client: TestClient) -> None:
    answer = client.post("/anything", content=b"[" + b",".join([b'"\\ud800"'] * 250) + b"]", headers=JSON)
    errors = is_problem(answer, 422, "validation_error", "/anything")["errors"]
    assert [error["loc"] for error in errors] == [["body", index] for index in range(100)]


def test_of_two_members_of_one_name_the_last_counts(client: TestClient) -> None:
    answer = client.post("/items", content=b'{"name": 1, "name": "last", "price": 3, "price": 4}', headers=JSON)
    assert answer.json() == {"name": "last", "price": 4.0}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 400),
        ("Application/JSON ; charset=utf-8", 400),
        ("application/problem+json", 400),
        ("text/plain", 200),
        ("application/x-ndjson", 200),
        ("application/octet-stream", 200),
        (None, 200),
    ],
)
def test_only_what_is_said_to_be_json_must_be(content_type: str | None, status: int, client: TestClient) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert client.post("/bytes", content=b'{"a": NaN}\n{"b": 1}', headers=headers).status_code == status


def test_no_body_at_all_is_the_handlers_to_judge(client: TestClient) -> None:
    assert client.post("/bytes", headers=JSON).json() == 0


def carries_half_a_pair(charset: str) -> bool:
    try:
        return "\ud800".encode(charset).decode(charset) == "\ud800"
    except (UnicodeError, LookupError):
        return False


CHARSETS = sorted({codecs.lookup(name).name for name in aliases.values() if name not in ("mbcs", "oem")})


@pytest.mark.parametrize("charset", CHARSETS)
def test_no_charset_of_a_form_brings_in_half_a_pair(charset: str, client: TestClient) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    try:
        value = "\ud800".encode(charset)
    except (UnicodeError, LookupError):
        value = b"\\ud800 +2AA-"
    part = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + value + b"\r\n--x--\r\n"
    answer = client.post("/form", content=part, headers=headers)
    assert answer.status_code == 415 if carries_half_a_pair(charset) else answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ("charset=utf-8", 200),
        ('charset="ISO-8859-1"', 200),
        ("charset=nobody-knows-it", 200),
        ("charset=unicode_escape", 415),
        ("charset*=utf-8''unicode_escape", 415),
        ("charset=utf-8; charset=unicode_escape", 415),
        ("charset = utf-7", 415),
    ],
)
def test_a_form_is_read_in_an_encoding_of_characters(parameters: str, status: int, client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nhello\r\n--x--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=x; {parameters}"}
    assert client.post("/form", content=part, headers=headers).status_code == status


@pytest.mark.parametrize("text", ["%ff", "%ed%a0%80", "%c0%80", "%f5%80%80%80"])
def test_an_address_that_is_no_utf_8_is_read_with_replacement_characters(text: str, client: TestClient) -> None:
    found = client.get(f"/texts/{text}?q={text}").json()
    assert set("".join(found)) == {"\ufffd"}
    posted = client.post("/form", content=f"name={text}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert set(posted.json()) == {"\ufffd"}


def test_nul_is_a_character_in_an_address(client: TestClient) -> None:
    assert client.get("/texts/a%00b?q=%00").json() == ["a\0b", "\0"]


async def parts_of(body: list[bytes]) -> list[bytes]:
    """What an app reads of a JSON body that comes in these parts."""
    read: list[bytes] = []
    left = list(body)

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            read.append(message["body"])
            more = message["more_body"]

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    await Bodies(reading)(scope, receive, send)
    return read


async def test_parts_pass_through_as_they_come_and_the_last_only_when_all_is_in_order() -> None:
    parts = [b'{"name', b'": "\\u', b"d83d\\u", b"", b'de00"}']
    assert await parts_of(parts) == parts
    with pytest.raises(HTTPException) as raised:
        await parts_of([b'{"name', b'": "\\u', b'd83d"}'])
    assert raised.value.status_code == 422


@pytest.mark.parametrize("response", [FileResponse(__file__), StreamingResponse(iter(["a", "b"])), JSONResponse("a")])
async def test_a_body_that_no_handler_has_read_does_not_break_the_answer(response: Response) -> None:
    app = create_app(settings=settings_of("prod"))

    @app.post("/unread")
    async def unread() -> Response:
        return response

    answer = await call(app, "POST", "/unread", body=b"[NaN]", headers=list(JSON.items()))
    assert answer.status == 200


def test_what_middleware_has_unpacked_is_what_is_checked() -> None:
    class Unpacking:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def unpacked() -> Message:
                message = await receive()
                return {**message, "body": message["body"].replace(b"?", b"\\ud800")}

            await self.app(scope, unpacked, send)

    app = create_app(settings=settings_of("prod"))
    app.add_middleware(Unpacking)
    app.add_route("/by-hand", by_hand, methods=["POST"])
    assert TestClient(app).post("/by-hand", content=b'"?"', headers=JSON).status_code == 422


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def can_be_passed_on(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(value=values, ascii_only=st.booleans())
def test_a_body_is_refused_exactly_when_what_it_says_cannot_be_passed_on(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if can_be_passed_on(value):
        check_json(body)
    else:
        with pytest.raises(HTTPException):
            check_json(body)
