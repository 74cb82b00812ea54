from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from svc_infra.edge.hosts import TrustedHosts
from svc_infra.errors import BadRequestError
from tests.middleware.asgi import call, only

HOSTS = TrustedHosts(["api.example.com", "*.shop.example", "[::1]", "127.0.0.1"])


def answers(*hosts: str) -> bool:
    try:
        HOSTS.check([(b"host", host.encode("latin-1")) for host in hosts])
    except BadRequestError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["api.example.com", "API.Example.COM", "api.example.com:8000", "a.shop.example", "a.b.shop.example", "[::1]:80"],
)
def test_a_named_host_is_answered(host: str) -> None:
    assert answers(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "example.com",
        "evil-api.example.com",
        "shop.example",
        "evilshop.example",
        "api.example.com.evil",
        "a@api.example.com",
        "api.example.com:port",
        "api.example.com/",
        "api.example.com:80:80",
        "api.example.com\n",
        "[::1",
        "api.example.com,evil",
    ],
)
def test_any_other_host_is_refused(host: str) -> None:
    assert not answers(host)


def test_a_request_names_one_host() -> None:
    assert not answers()
    assert not answers("api.example.com", "api.example.com")


@given(host=st.text(st.characters(max_codepoint=255), max_size=80))
def test_nothing_but_the_names_is_answered(host: str) -> None:
    name = host.lower().rpartition(":")[0] if ":" in host else host.lower()
    assert (
        not answers(host) or name in ("api.example.com", "127.0.0.1", "[:", "[::1]") or name.endswith(".shop.example")
    )


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def test_the_edge_answers_for_its_hosts_only_but_to_every_probe() -> None:
    app = only(hello, edge={"trusted_hosts": "api.example.com"})
    assert (await call(app, headers=[("host", "api.example.com")])).status == 200
    assert (await call(app, headers=[("host", "evil.example")])).is_problem(400, "bad_request")
    assert (await call(app)).status == 400
    assert (await call(app, path="/_ops/live", headers=[("host", "10.1.2.3:8000")])).status == 200


async def test_without_names_every_host_is_answered() -> None:
    assert (await call(only(hello), headers=[("host", "anything")])).status == 200
