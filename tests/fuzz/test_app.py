"""Any bytes, sent to an app with everything that reads a header: one complete answer, never a 5xx.

The requests go past the server, which would refuse many of them itself: no server that an app may run under is trusted
to do so.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import jsonschema_rs
import pytest
from fastapi import Body, Cookie, Depends, FastAPI, Form, Header, Request, Response, UploadFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message

from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.idempotency.add import add_idempotency
from svc_infra.idempotency.http import Idempotent
from svc_infra.jobs.add import add_jobs
from svc_infra.mail._console import ConsoleSender
from svc_infra.mail.add import add_mail
from svc_infra.middleware import LoggingMiddleware, RateLimitMiddleware, RequestIdMiddleware
from svc_infra.middleware.conditional import Conditional, etag_of
from svc_infra.middleware.http import rate_limit
from svc_infra.openapi.schema import PROBLEM
from svc_infra.security.add import add_auth_users
from svc_infra.security.http import Identity, OptionalIdentity
from svc_infra.tenancy.add import add_tenancy
from svc_infra.tenancy.http import OptionalTenantId
from svc_infra.testing import FakeClock
from svc_infra.wiring import wiring_of
from tests.middleware.asgi import Answer, lifespan, scope_of

Headers = list[tuple[bytes, bytes]]

IS_A_PROBLEM = jsonschema_rs.validator_for(PROBLEM)
STATIC = f"/static/{Path(__file__).name}"
KNOWN = [
    *(("GET", "/me"), ("POST", "/me"), ("POST", "/guarded"), ("GET", "/conditional"), ("PUT", "/conditional")),
    *(("POST", "/json"), ("POST", "/form"), ("POST", "/upload"), ("GET", "/cookies"), ("GET", "/docs")),
    *(("POST", "/any"), ("GET", "/file"), ("GET", STATIC), ("HEAD", STATIC)),
]
PATHS = ["/me", "/guarded", "/conditional", "/json", "/form", "/upload", "/cookies", "/nowhere", "/docs"]
LIMIT_BYTES = 500
FILE_BYTES = Path(__file__).stat().st_size


class Item(BaseModel):
    """Some JSON."""

    name: str
    count: int = 0
    price: float = 0
    more: Any = None


def with_everything(sql_url: str) -> FastAPI:
    """An app in which every header that we read is read."""
    app = create_app(
        settings=Settings(
            app={"env": "prod", "max_body_bytes": LIMIT_BYTES, "docs": True},
            sql={"url": sql_url, "migrate_on_start": True},
            cors={"origins": ("https://app.example.com",), "credentials": True},
            edge={"trusted_proxies": ("192.0.2.1",), "forwarded_header": "forwarded", "max_headers": 20},
            mail={"link_base_url": "https://app.example.com"},
        )
    )
    add_db(app)
    add_auth_users(app)
    add_jobs(app, worker=False, scheduler=False)
    add_mail(app, sender=ConsoleSender())
    add_tenancy(app)
    add_idempotency(app)
    app.add_middleware(RateLimitMiddleware, "1000000/second")
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(LoggingMiddleware)
    add_readers(app)
    return app


def add_readers(app: FastAPI) -> None:
    """Give an app routes that read in every way."""
    limited = rate_limit("1000000/second", per="tenant")

    @app.api_route("/me", methods=["GET", "POST"], dependencies=[limited])
    async def me(user: Identity, tenant: OptionalTenantId) -> str:
        return user.email

    @app.post("/guarded", dependencies=[Idempotent(required=False, caller=lambda request: "ana")])
    async def guarded(request: Request) -> int:
        return len(await request.body())

    @app.api_route("/conditional", methods=["GET", "PUT"])
    async def conditional(conditional: Annotated[Conditional, Depends()], user: OptionalIdentity) -> None:
        conditional.check(etag=etag_of("it"), last_modified=FakeClock().now())

    @app.post("/json")
    async def document(item: Item) -> Item:
        return item

    @app.post("/any")
    async def anything(document: Annotated[dict[str, Any] | list[Any] | str, Body()]) -> Response:
        return JSONResponse(document)

    @app.get("/file")
    async def file() -> FileResponse:
        return FileResponse(__file__)

    app.mount("/static", StaticFiles(directory=Path(__file__).parent))

    @app.post("/form")
    async def form(name: Annotated[str, Form()], count: Annotated[int, Form()] = 0) -> str:
        return name

    @app.post("/upload")
    async def upload(file: UploadFile) -> int:
        return len(await file.read())

    @app.get("/cookies")
    async def cookies(
        sid: Annotated[str | None, Cookie()] = None, accept: Annotated[str | None, Header()] = None
    ) -> list[str | None]:
        return [sid, accept]


@pytest.fixture
async def app(migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    monkeypatch.setenv("AUTH_SECRET", "k" * 32)
    made = with_everything(migrated_sqlite_url)
    wiring_of(made)
    async with lifespan(made):
        yield made


async def ask(app: ASGIApp, method: str, path: str, query: bytes, headers: Headers, body: list[bytes]) -> Answer:
    """Send a request as these very bytes."""
    answer, left, complete = Answer(), list(body) or [b""], asyncio.Event()

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            complete.set()

    scope = {**scope_of(method, path, query=query), "headers": headers, "raw_path": path.encode("utf-8", "replace")}
    await app(scope, receive, send)
    return answer


def check(answer: Answer, method: str) -> None:
    """Hold an answer to what every answer must be."""
    kinds = [message["type"] for message in answer.messages]
    assert kinds[0] == "http.response.start"
    assert set(kinds[1:]) == {"http.response.body"}, kinds
    assert [message.get("more_body", False) for message in answer.messages[1:]][-1] is False
    assert answer.status < 500, answer.body
    for name, value in answer.messages[0]["headers"]:
        assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name)
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.header("x-request-id"))
    if answer.status >= 400:
        assert answer.header("content-type") == "application/problem+json"
        if method != "HEAD":
            assert int(answer.header("content-length")) == len(answer.body)
            problem = json.loads(answer.body)
            IS_A_PROBLEM.validate(problem)
            assert problem["status"] == answer.status


names = st.sampled_from(
    b"""
    accept accept-encoding accept-language access-control-request-headers access-control-request-method authorization
    baggage connection content-encoding content-length content-type cookie expect forwarded host idempotency-key
    if-match if-modified-since if-none-match if-range if-unmodified-since origin range referer te traceparent tracestate
    transfer-encoding upgrade user-agent x-forwarded-for x-forwarded-host x-forwarded-proto x-http-method-override
    x-request-id x-tenant-id""".split()
) | st.binary(min_size=1, max_size=12).map(bytes.lower)
likely = st.sampled_from(
    [
        *(b"*", b"0", b"-1", b"100", b"999999999999999999999", b"+5", b"0x10", b"\xc2\xb2", b"", b" ", b"a" * 300),
        *(b'"a"', b'W/"a"', b'"', b'"a", "b"', b"null", b"GET", b"PUT", b"content-type", b"x, y", b"gzip", b"chunked"),
        *(b"Bearer ", b"Bearer a.b.c", b"Basic YTpi", b"bearer\xff", b"eyJ.eyJ.x"),
        *(b"https://app.example.com", b"https://evil.example", b"test", b"test:80", b"[::1]:1", b"a:b:c"),
        *(b"for=1.2.3.4;proto=https;host=x", b'for="[::1]:9"', b"for=unknown", b'for="'),
        *(
            b"application/json",
            b"text/plain; charset=utf-7",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data",
        ),
        *(b"multipart/form-data; boundary=x", b"multipart/form-data; boundary=", b"application/json; charset=\xff"),
        *(
            b"Sun, 06 Nov 1994 08:49:37 GMT",
            b"Sun, 31 Feb 2026 25:61:61 GMT",
            b"bytes=0-1",
            b"bytes=5-2,-1",
            b"items=1",
        ),
        *(b"a=b; c=d", b"sid=\xff; sid", b"=;=;", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        *(b"a\r\nx-evil: 1", b"a\x00b", b"\xff\xfe", b"00000000-0000-0000-0000-000000000000"),
    ]
)
values = likely | st.binary(max_size=30)
JSON = [
    *(b'{"name": "a"}', b'{"name": 1, "count": "x"}', b'{"name": "\\ud800"}', b'{"count": 1e999, "name": ""}', b"["),
    *(b'{"name": "", "price": 1e999}', b'{"name": "\\u0000", "more": [NaN]}', b'{"\\udc00": -Infinity}', b"9" * 450),
    *(
        b"[" * 200 + b"]" * 200,
        b'{"a":' * 60 + b"1" + b"}" * 60,
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'"\xed\xa0\x80"',
    ),
]
texts = st.text(st.characters(exclude_categories=[]), max_size=8)
documents = st.recursive(
    texts | st.floats() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
).map(lambda value: json.dumps({"name": "a", "more": value}).encode())
FORMS = [b"name=a", b"name=a&count=%zz", b"name=%ff&count=" + b"9" * 50, b"%", b"=&=", b"name=a;count=1"]
PART = b'--x\r\ncontent-disposition: form-data; name="'
PARTS = [
    PART + b'file"; filename="\xff\x00"\r\n\r\nhello\r\n--x--\r\n',
    PART + b"file\"; filename*=utf-8''%ff\r\n\r\nhello\r\n--x--\r\n",
    *(PART + b'name"\r\n\r\nhello\r\n--x--\r\n', PART, b"--x\r\n\r\n", b"--x--"),
    b"--x\r\ncontent-disposition: form-data\r\n\r\n\r\n--x--\r\n",
]
typed = st.one_of(  # a body of the type that it is said to have, or nearly
    st.tuples(st.just(b"application/json"), st.sampled_from(JSON) | documents | st.binary(max_size=20)),
    st.tuples(st.just(b"application/x-www-form-urlencoded"), st.sampled_from(FORMS) | st.binary(max_size=20)),
    st.tuples(st.just(b"multipart/form-data; boundary=x"), st.sampled_from(PARTS) | st.binary(max_size=20)),
    st.tuples(values, st.binary(max_size=40) | st.just(b"x" * (LIMIT_BYTES + 1))),
)


def in_two(body: bytes) -> list[bytes]:
    return [body[: len(body) // 2], body[len(body) // 2 :]]


known = st.sampled_from(KNOWN)
paths = st.sampled_from(PATHS) | st.text(max_size=20).map("/{}".format)
methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY", "get", "é"])


ranges = likely | st.from_regex(rb"(bytes|items)?=?[0-9, -]{0,12}", fullmatch=True)
ONE_APP_FOR_ALL = settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONE_APP_FOR_ALL
@given(
    target=st.one_of(known, known, known, st.tuples(methods, paths)),
    query=st.binary(max_size=20),
    headers=st.lists(st.tuples(names, values), max_size=8),
    content=typed | st.none(),
)
async def test_any_request_gets_one_well_formed_answer(
    app: FastAPI, target: tuple[str, str], query: bytes, headers: Headers, content: tuple[bytes, bytes] | None
) -> None:
    body = []
    if content is not None:
        headers, body = [*headers, (b"content-type", content[0])], in_two(content[1])
    check(await ask(app, *target, query, headers, body), target[0])
    assert wiring_of(app).in_flight == 0


@ONE_APP_FOR_ALL
@given(ranges=ranges, path=st.sampled_from(PATHS))
async def test_a_range_that_is_asked_for_changes_nothing(app: FastAPI, ranges: bytes, path: str) -> None:
    """No answer but a file has parts; RFC 9110, section 14.2, lets a server give the whole."""
    whole = await ask(app, "GET", path, b"", [], [])
    answer = await ask(app, "GET", path, b"", [(b"range", ranges), (b"if-range", b'"a"')], [])
    check(answer, "GET")
    assert (answer.status, dict(answer.headers).keys()) == (whole.status, dict(whole.headers).keys())


@ONE_APP_FOR_ALL
@given(ranges=ranges, path=st.sampled_from(["/file", STATIC]), if_range=st.none() | likely)
async def test_a_part_of_a_file_is_what_was_asked_for_or_a_problem(
    app: FastAPI, ranges: bytes, path: str, if_range: bytes | None
) -> None:
    headers = [(b"range", ranges)] + ([] if if_range is None else [(b"if-range", if_range)])
    answer = await ask(app, "GET", path, b"", headers, [])
    check(answer, "GET")
    assert answer.status in (200, 206, 400, 416)
    if answer.status == 416:
        assert answer.header("content-range") == f"bytes */{FILE_BYTES}"
    if answer.status < 400:
        assert int(answer.header("content-length")) == len(answer.body)
