"""Against a server that answers like Have I Been Pwned."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from prometheus_client import REGISTRY

from svc_infra.db import AsyncDatabase
from svc_infra.errors import ValidationError
from svc_infra.http import HttpClient
from svc_infra.security.passwords import BreachedPasswords
from svc_infra.testing import FakeClock
from tests.http.servers import serving
from tests.security.conftest import assert_problem, running, service

PASSWORD = "a password that was breached"
DIGEST = hashlib.sha1(PASSWORD.encode()).hexdigest().upper()


def answering(*lines: str, status: str = "200 OK") -> bytes:
    body = "\r\n".join(lines).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("auth_breach_check_total", {"result": result}) or 0


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (answering("0" * 35 + ":3", f"{DIGEST[5:]}:42"), "refused"),
        (answering("0" * 35 + ":3"), "passed"),
        (answering(f"{DIGEST[5:]}:0"), "passed"),  # padding
        (answering(status="503 Unavailable"), "skipped"),
        (answering("\x00\xff nonsense"), "passed"),
        (b"what?\r\n\r\n", "skipped"),
    ],
)
async def test_a_breached_password_is_refused_and_no_answer_lets_it_pass(answer: bytes, result: str) -> None:
    before = counted(result)
    async with serving(answer) as server, HttpClient(allow_private_addresses=True) as http:
        breached = BreachedPasswords(http, url=server.url("/range/"))
        if result == "refused":
            with pytest.raises(ValidationError, match="data breach"):
                await breached.check(PASSWORD)
        else:
            await breached.check(PASSWORD)
        [request] = server.requests
    assert request.startswith(f"GET /range/{DIGEST[:5]} ")
    assert "add-padding: true" in request.lower()
    assert DIGEST[5:] not in request
    assert counted(result) == before + 1


async def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    before = counted("skipped")
    async with serving(silent) as server, HttpClient(allow_private_addresses=True) as http:
        async with asyncio.timeout(10):
            await BreachedPasswords(http, url=server.url("/range/"), timeout_seconds=0.05).check(PASSWORD)
    assert counted("skipped") == before + 1


async def test_an_app_asks_where_it_is_told_to(sqlite_db: AsyncDatabase, clock: FakeClock) -> None:
    async with serving(answering(f"{DIGEST[5:]}:42")) as server:
        auth = {"breach_check": True, "breach_check_url": server.url("/range/")}
        async with running(service(sqlite_db, clock, auth=auth), clock) as client:
            answer = await client.http.post("/auth/register", json={"email": "ana@example.com", "password": PASSWORD})
            assert "data breach" in assert_problem(answer, 422, "validation_error")["detail"]
            await client.register()
    assert len(server.requests) == 2
