"""The client over real sockets: what it sends, what it reads, and where it stops."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn

from svc_infra.errors import DeadlineExceededError, EgressRefusedError, SvcInfraError, UpstreamError
from svc_infra.http import HttpClient
from svc_infra.obs.context import Context, enter, leave
from tests.http.servers import OK, certificate, serving


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    """A client that may call this machine."""
    async with HttpClient(allow_private_addresses=True, timeout_seconds=5, max_response_bytes=1000) as client:
        yield client


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that answers with what it was asked."""
    assert scope["type"] == "http"
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    asked = {
        "method": scope["method"],
        "target": scope["raw_path"].decode() + "?" + scope["query_string"].decode(),
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        "body": body.decode(),
    }
    headers = [(b"X-Twice", b"1"), (b"x-twice", b"2"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 207, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(asked)})


@pytest.fixture
async def echo_url() -> AsyncIterator[str]:
    """Where uvicorn serves `echo`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # from now on clients wait for the server to start
        server = uvicorn.Server(uvicorn.Config(echo, lifespan="off", log_level="warning", access_log=False))
        serve = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serve


async def test_a_request_arrives_as_it_was_given_and_its_answer_comes_back(http: HttpClient, echo_url: str) -> None:
    response = await http.request(
        "post", f"{echo_url}/a%2Fb/ü?x=1&y=a b#fragment", headers={"X-Mine": "yes", "User-Agent": "me"}, json={"a": [1]}
    )
    asked = orjson.loads(response.body)
    assert response.status == 207
    assert response.headers["x-twice"] == "1, 2"
    assert response.headers["content-type"] == "application/json"
    assert 0 < response.elapsed_seconds < 5
    assert asked["method"] == "POST"
    assert asked["target"] == "/a%2Fb/%C3%BC?x=1&y=a%20b"
    assert asked["body"] == '{"a":[1]}'
    assert asked["headers"] == {
        "host": echo_url.removeprefix("http://"),
        "user-agent": "me",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-mine": "yes",
        "content-length": "9",
    }


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("DELETE", None), ("POST", "0"), ("PUT", "0")])
async def test_only_methods_that_have_a_body_say_that_it_is_empty(
    http: HttpClient, echo_url: str, method: str, length: str | None
) -> None:
    asked = orjson.loads((await http.request(method, echo_url)).body)
    assert asked["headers"].get("content-length") == length


async def test_an_answer_to_head_has_no_body(http: HttpClient, echo_url: str) -> None:
    response = await http.request("HEAD", echo_url)
    assert (response.status, response.body) == (207, b"")


@pytest.mark.parametrize(("sampled", "flags"), [(True, "01"), (False, "00"), (None, "00")])
async def test_a_call_carries_the_request_id_and_the_trace(
    http: HttpClient, echo_url: str, sampled: bool | None, flags: str
) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    token = enter(Context(request_id="r-1", trace_id=trace, span_id=span, sampled=sampled))
    try:
        headers = orjson.loads((await http.request("GET", echo_url)).body)["headers"]
    finally:
        leave(token)
    assert headers["x-request-id"] == "r-1"
    assert headers["traceparent"] == f"00-{trace}-{span}-{flags}"


async def test_who_knows_only_a_trace_continues_it_with_a_new_span(http: HttpClient, echo_url: str) -> None:
    token = enter(Context(trace_id="0af7651916cd43dd8448eb211c80319c"))
    try:
        headers = orjson.loads((await http.request("GET", echo_url)).body)["headers"]
    finally:
        leave(token)
    version, trace, span, flags = headers["traceparent"].split("-")
    assert (version, trace, len(span), flags) == ("00", "0af7651916cd43dd8448eb211c80319c", 16, "00")


async def test_redirects_are_answers_and_cookies_are_forgotten(http: HttpClient) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /next\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with serving(moved) as server:
        for _ in range(2):
            response = await http.request("GET", server.url())
            assert (response.status, response.headers["location"]) == (302, "/next")
    assert len(server.requests) == 2
    assert "/next" not in "".join(server.requests)
    assert "cookie" not in "".join(server.requests).lower()


async def test_proxies_of_the_environment_are_ignored(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(OK) as server, HttpClient(allow_private_addresses=True) as fresh:
        assert (await fresh.request("GET", server.url())).body == b"ok"


async def test_a_connection_is_kept_for_the_next_request(http: HttpClient) -> None:
    async with serving(OK) as server:
        for _ in range(3):
            await http.request("GET", server.url())
        assert (len(server.requests), server.connections) == (3, 1)
        await http.aclose()
        await asyncio.wait_for(server.hung_up.wait(), 5)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="says nothing"),
        pytest.param([b"HTTP/1.1 200 OK\r\nX-A: "], id="never ends its headers"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"], id="never ends its body"),
    ],
)
async def test_an_answer_that_does_not_end_in_time_is_a_missed_deadline(http: HttpClient, pieces: list[bytes]) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)
        await asyncio.Event().wait()

    async with serving(stall) as server:
        with pytest.raises(DeadlineExceededError, match="did not answer in time"):
            await http.request("GET", server.url(), timeout_seconds=0.2)


async def test_a_server_that_drips_cannot_stretch_the_deadline(http: HttpClient) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip) as server:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await http.request("GET", server.url(), timeout_seconds=0.3)
        assert 0.25 < time.monotonic() - started < 5
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 500)
        await writer.drain()


async def test_a_body_that_is_too_long_is_refused_and_its_connection_dropped(http: HttpClient) -> None:
    async with serving(_endless) as server:
        with pytest.raises(UpstreamError, match="more than 1000 bytes"):
            await http.request("GET", server.url())
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_a_caller_may_keep_the_beginning_of_a_long_body(http: HttpClient) -> None:
    async with serving(_endless) as server:
        response = await http.request("GET", server.url(), truncate=True)
        assert (response.status, response.body) == (200, b"x" * 1000)
        await asyncio.wait_for(server.hung_up.wait(), 5)


@pytest.mark.parametrize(("length", "accepted"), [(1000, True), (1001, False)])
async def test_the_limit_itself_is_accepted(http: HttpClient, length: int, accepted: bool) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (length, b"x" * length)) as server:
        if accepted:
            assert len((await http.request("GET", server.url())).body) == length
        else:
            with pytest.raises(UpstreamError):
                await http.request("GET", server.url())


async def test_compressed_bodies_are_not_unpacked(http: HttpClient) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08") as server:
        assert (await http.request("GET", server.url())).body == b"\x1f\x8b\x08"


async def test_endless_headers_are_refused(http: HttpClient) -> None:
    async def endless_headers(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-Header: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async with serving(endless_headers) as server:
        with pytest.raises(UpstreamError, match="proper HTTP"):
            await http.request("GET", server.url())
        await asyncio.wait_for(server.hung_up.wait(), 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\n bad: header\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_an_upstream_error(http: HttpClient, answer: bytes) -> None:
    async with serving(answer) as server:
        with pytest.raises(UpstreamError):
            await http.request("GET", server.url())


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
async def test_a_connection_that_breaks_off_is_an_upstream_error(http: HttpClient, before: bytes) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        writer.close()

    async with serving(hang_up) as server:
        with pytest.raises(UpstreamError):
            await http.request("GET", server.url())
    assert len(server.requests) == 1  # and is not tried again


async def test_a_closed_port_is_an_upstream_error_that_does_not_show_the_url(http: HttpClient) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/?token=s3cr3t"
        with pytest.raises(UpstreamError, match="cannot be reached") as raised:
            await http.request("GET", url)
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize("headers", [{"X-A": "b\r\nX-Injected: yes"}, {"X-A\r\nX-Injected": "yes"}, {"": "x"}])
async def test_a_header_cannot_smuggle_another(http: HttpClient, headers: dict[str, str]) -> None:
    async with serving(OK) as server:
        with pytest.raises(SvcInfraError, match="malformed"):
            await http.request("GET", server.url(), headers=headers)
    assert server.requests == []


async def test_a_strangers_address_never_sees_a_connection_to_this_machine() -> None:
    async with serving(OK) as server, HttpClient() as strict:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"):
            with pytest.raises(EgressRefusedError):
                await strict.request("GET", server.url(host=host))
            with pytest.raises(EgressRefusedError):
                await strict.check(server.url(host=host))
    assert server.connections == 0


async def test_a_name_that_changes_its_mind_after_the_check_is_refused() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    async with serving(OK) as server, HttpClient(resolve=rebinding) as strict:
        await strict.check(server.url(host="rebind.example"))
        with pytest.raises(EgressRefusedError, match=r"rebind\.example may not be called"):
            await strict.request("GET", server.url(host="rebind.example"))
    assert server.connections == 0


async def test_a_connection_goes_to_the_address_that_was_checked_under_the_name_that_was_asked() -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async with serving(OK) as server, HttpClient(allow_private_addresses=True, resolve=resolve) as http:
        url = server.url(host="shop.example")
        assert (await http.request("GET", url)).status == 200
        assert (await http.request("GET", url)).status == 200  # over the connection that was checked
        assert asked == ["shop.example"]  # once, for check and connection alike
        assert f"host: shop.example:{server.port}\r\n" in server.requests[0]
        await http.aclose()
        with pytest.raises(EgressRefusedError):
            await http.request("GET", url)
    assert len(server.requests) == 2


async def test_the_next_address_is_tried_when_the_first_does_not_answer() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]  # nothing listens on the first

    async with serving(OK) as server, HttpClient(allow_private_addresses=True, resolve=resolve) as http:
        assert (await http.request("GET", server.url(host="two.example"))).body == b"ok"


async def test_tls_proves_the_name_that_was_asked_and_not_the_address(tmp_path: Path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    tls, trusting = certificate(tmp_path, "good.example")
    async with (
        serving(OK, tls=tls) as server,
        HttpClient(allow_private_addresses=True, resolve=resolve, ssl_context=trusting) as http,
    ):
        assert (await http.request("GET", server.url(host="good.example", scheme="https"))).body == b"ok"
        assert server.names == ["good.example"]
        with pytest.raises(UpstreamError, match="TLS certificate"):  # and not over the other name's open connection
            await http.request("GET", server.url(host="evil.example", scheme="https"))
        assert len(server.requests) == 1


async def test_an_authority_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path, "localhost")
    async with serving(OK, tls=tls) as server, HttpClient(allow_private_addresses=True) as http:
        with pytest.raises(UpstreamError, match="TLS certificate"):
            await http.request("GET", server.url(host="localhost", scheme="https"))
    assert server.requests == []


async def test_a_plain_server_called_with_tls_is_an_upstream_error(http: HttpClient) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        with pytest.raises(UpstreamError, match="TLS"):
            await http.request("GET", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")


async def test_checking_a_name_that_does_not_resolve_refuses_it() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with HttpClient(resolve=nowhere) as http:
        with pytest.raises(EgressRefusedError, match=r"gone\.example cannot be found"):
            await http.check("https://gone.example/")
        with pytest.raises(UpstreamError, match=r"gone\.example cannot be found"):
            await http.request("GET", "https://gone.example/")


async def test_resolving_a_name_is_part_of_the_deadline() -> None:
    async def stuck(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    async with HttpClient(resolve=stuck, timeout_seconds=0.1) as http:
        with pytest.raises(DeadlineExceededError):
            await http.request("GET", "https://slow.example/")
        with pytest.raises(EgressRefusedError):
            await http.check("https://slow.example/")


async def test_a_call_takes_no_longer_than_the_request_that_makes_it(http: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        token = enter(Context(deadline=time.monotonic() + 0.05))
        try:
            with pytest.raises(DeadlineExceededError):
                await http.request("GET", f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        finally:
            leave(token)
