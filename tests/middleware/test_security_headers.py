from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from svc_infra.config.serving import HeadersSettings
from svc_infra.errors import ConfigurationError
from svc_infra.middleware import SecurityHeadersMiddleware
from tests.middleware.asgi import Answer, call, edged, only

EXPECTED = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


async def answer_json(request: Request) -> Response:
    return JSONResponse({})


def alone(endpoint: Any, **values: str) -> ASGIApp:
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(SecurityHeadersMiddleware, **values)
    return app


def fused(endpoint: Any, **values: str) -> ASGIApp:
    return only(endpoint, headers=values)


both = pytest.mark.parametrize("made", [alone, fused])


def of_browser(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name in {*EXPECTED, "strict-transport-security"}}


@both
async def test_an_answer_of_an_api_has_every_header_once(made: Any) -> None:
    answer = await call(made(answer_json))
    assert of_browser(answer) == EXPECTED
    assert len({name for name, _ in answer.headers}) == len(answer.headers)


@both
async def test_transport_security_is_told_over_https_only(made: Any) -> None:
    answer = await call(made(answer_json), scheme="https")
    told = {"strict-transport-security": "max-age=31536000; includeSubDomains"}
    assert of_browser(answer) == {**EXPECTED, **told}


@both
async def test_a_page_may_load_what_comes_from_the_service_itself(made: Any) -> None:
    async def page(request: Request) -> Response:
        return HTMLResponse("<h1>hello</h1>")

    policy = of_browser(await call(made(page)))["content-security-policy"]
    assert policy.startswith("default-src 'self'; object-src 'none'")
    assert "frame-ancestors 'none'" in policy


@both
async def test_what_the_app_sets_itself_is_kept_and_never_doubled(made: Any) -> None:
    async def endpoint(request: Request) -> Response:
        return Response(headers={"X-Frame-Options": "SAMEORIGIN", "Content-Security-Policy": "default-src 'self'"})

    found = of_browser(await call(made(endpoint)))
    assert (found["x-frame-options"], found["content-security-policy"]) == ("SAMEORIGIN", "default-src 'self'")
    assert found.keys() == EXPECTED.keys()


@both
async def test_a_header_in_capitals_is_the_same_header(made: Any) -> None:
    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-Frame-Options", b"SAMEORIGIN"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    class Endpoint:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await raw(scope, receive, send)

    answer = await call(made(Endpoint()))
    assert [value for name, value in answer.headers if name.lower() == "x-frame-options"] == ["SAMEORIGIN"]
    assert [value for name, value in answer.headers if name == "Set-Cookie"] == ["a=1", "b=2"]


@both
async def test_every_cookie_reaches_the_client(made: Any) -> None:
    async def endpoint(request: Request) -> Response:
        response = Response()
        response.set_cookie("session", "1")
        response.set_cookie("theme", "dark")
        return response

    answer = await call(made(endpoint))
    cookies = [value.partition(";")[0] for name, value in answer.headers if name == "set-cookie"]
    assert cookies == ["session=1", "theme=dark"]


@both
@pytest.mark.parametrize("field", sorted(set(HeadersSettings.model_fields) - {"html_content_security_policy"}))
async def test_each_header_can_have_another_value_or_be_left_out(made: Any, field: str) -> None:
    name = field.replace("_", "-")
    changed = await call(made(answer_json, **{field: "another"}), scheme="https")
    without = await call(made(answer_json, **{field: "off"}), scheme="https")
    assert of_browser(changed)[name] == "another"
    assert name not in of_browser(without)
    assert len(of_browser(without)) == len(EXPECTED)


def test_a_value_cannot_begin_another_header() -> None:
    values = dict(SecurityHeadersMiddleware(answer_json, referrer_policy="a\r\nx: y")._headers._plain)  # type: ignore[arg-type]
    assert values[b"referrer-policy"] == b"a x: y"


def test_a_header_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="x_frame_option"):
        SecurityHeadersMiddleware(answer_json, x_frame_option="DENY")  # type: ignore[arg-type]


async def test_alone_inside_of_the_edge_it_leaves_everything_to_the_edge() -> None:
    app = Starlette(routes=[Route("/", answer_json)])
    app.add_middleware(SecurityHeadersMiddleware, x_frame_options="SAMEORIGIN")
    assert of_browser(await call(edged(app)))["x-frame-options"] == "DENY"


async def test_an_answer_that_is_used_again_does_not_grow() -> None:
    constant = JSONResponse({})
    app = only(lambda request: constant)
    assert len((await call(app)).headers) == len((await call(app)).headers)


async def test_a_refusal_has_the_headers_too() -> None:
    assert of_browser(await call(only(answer_json), path="/" + "x" * 9000)) == EXPECTED
