from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from svc_infra.errors import ConfigurationError, RateLimitedError
from tests.middleware.asgi import Answer, around, call, only

ORIGIN = "https://app.example.com"
PREFLIGHT = [("access-control-request-method", "PUT"), ("access-control-request-headers", "authorization,content-type")]


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello", headers={"Vary": "Accept-Encoding"})


def rules(origins: str = f"{ORIGIN},https://*.shop.example", **more: Any) -> dict[str, Any]:
    return {"origins": origins, **more}


def allowed(answer: Answer) -> str | None:
    return dict(answer.headers).get("access-control-allow-origin")


def varies(answer: Answer) -> set[str]:
    return {part.strip().lower() for name, value in answer.headers if name == "vary" for part in value.split(",")}


@pytest.mark.parametrize("origin", [ORIGIN, "https://a.shop.example", "https://a.b.shop.example"])
async def test_a_page_of_a_named_origin_may_read_the_answer(origin: str) -> None:
    answer = await call(only(hello, cors=rules(credentials=True)), headers=[("origin", origin)])
    assert (answer.status, allowed(answer)) == (200, origin)
    assert answer.header("access-control-allow-credentials") == "true"
    assert "X-Request-Id" in answer.header("access-control-expose-headers")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil",
        "https://evilshop.example",
        "https://shop.example",
        "https://a.shop.example.evil",
        "https://evil.example/.shop.example",
        "null",
        "",
        "*",
        "https://a\n.shop.example",
        "https://A.shop.example",
    ],
)
async def test_a_page_of_another_origin_may_not(origin: str) -> None:
    answer = await call(only(hello, cors=rules(credentials=True)), headers=[("origin", origin)])
    assert (answer.status, allowed(answer)) == (200, None)
    preflight = await call(only(hello, cors=rules()), "OPTIONS", headers=[("origin", origin), *PREFLIGHT])
    assert preflight.is_problem(400, "bad_request")
    assert allowed(preflight) is None


@settings(deadline=None)
@given(origin=st.text(st.characters(max_codepoint=255), max_size=60))
async def test_no_origin_is_allowed_by_accident(origin: str) -> None:
    assert allowed(await call(APP, headers=[("origin", origin)])) is None


APP = around(hello_app := only(hello), cors=rules())


@pytest.mark.parametrize("headers", [[], [("origin", ORIGIN)], [("origin", "https://evil.example")]])
async def test_every_answer_says_that_it_depends_on_the_origin(headers: list[tuple[str, str]]) -> None:
    answer = await call(only(hello, cors=rules()), headers=headers)
    assert varies(answer) == {"accept-encoding", "origin"}


async def test_a_preflight_is_answered_without_the_app_and_before_every_limit() -> None:
    async def endpoint(request: Request) -> Response:
        raise AssertionError("the handler ran")

    app = only(endpoint, methods=("OPTIONS", "PUT"), cors=rules(), edge={"max_url_bytes": 1, "max_headers": 1})
    answer = await call(app, "OPTIONS", "/items", headers=[("origin", ORIGIN), *PREFLIGHT])
    assert (answer.status, allowed(answer)) == (200, ORIGIN)
    assert "PUT" in answer.header("access-control-allow-methods")
    assert answer.header("access-control-max-age") == "600"
    assert {"origin", "access-control-request-method", "access-control-request-headers"} <= varies(answer)
    assert len([1 for name, _ in answer.headers if name == "vary"]) == 1
    assert answer.header("x-request-id")
    assert answer.header("x-content-type-options") == "nosniff"


@pytest.mark.parametrize(
    "asked", [("access-control-request-method", "TRACE"), ("access-control-request-headers", "x-unheard-of")]
)
async def test_a_preflight_for_too_much_is_refused(asked: tuple[str, str]) -> None:
    headers = dict([("origin", ORIGIN), *PREFLIGHT, asked])
    assert (await call(only(hello, cors=rules()), "OPTIONS", headers=headers.items())).is_problem(400, "bad_request")


async def test_an_options_request_that_is_no_preflight_reaches_the_app() -> None:
    app = only(hello, methods=("OPTIONS",), cors=rules())
    assert (await call(app, "OPTIONS", headers=[("origin", ORIGIN)])).body == b"hello"
    assert (await call(app, "OPTIONS", headers=PREFLIGHT)).body == b"hello"


async def test_a_page_can_read_why_it_was_refused() -> None:
    async def limited(request: Request) -> Response:
        raise RateLimitedError(retry_after_seconds=3)

    async def broken(request: Request) -> Response:
        raise KeyError

    for endpoint, status in ((limited, 429), (broken, 500)):
        answer = await call(only(endpoint, cors=rules()), headers=[("origin", ORIGIN)])
        assert (answer.status, allowed(answer)) == (status, ORIGIN)
    too_long = await call(only(hello, cors=rules()), path="/" + "x" * 9000, headers=[("origin", ORIGIN)])
    assert (too_long.status, allowed(too_long)) == (414, ORIGIN)


async def test_every_origin_may_read_without_credentials_when_the_settings_say_so() -> None:
    answer = await call(only(hello, cors=rules("*")), headers=[("origin", "https://anybody.example")])
    assert allowed(answer) == "*"
    assert "access-control-allow-credentials" not in dict(answer.headers)


@pytest.mark.parametrize(
    ("origins", "more"),
    [
        ("*", {"credentials": True}),
        (f"*,{ORIGIN}", {}),
        ("https://*", {}),
        ("https://a*.example", {}),
        ("app.example.com", {}),
        (f"{ORIGIN}/", {}),
        ("https://App.example.com", {}),
        ("https://*.*.example", {}),
        ("null", {}),
    ],
)
def test_origins_that_cannot_be_meant_are_refused(origins: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CORS_ORIGINS"):
        around(hello_app, cors=rules(origins, **more))


async def test_by_default_no_page_of_another_origin_reads_anything() -> None:
    answer = await call(only(hello), headers=[("origin", ORIGIN)])
    assert not [name for name, _ in answer.headers if name.startswith("access-control")]
    assert varies(answer) == {"accept-encoding"}
    assert (await call(only(hello), "OPTIONS", headers=[("origin", ORIGIN), *PREFLIGHT])).status == 405
