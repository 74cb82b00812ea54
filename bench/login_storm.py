"""What a plain request waits for while fifty logins are in flight, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI

from bench.load import load
from bench.serving import Contender, served
from svc_infra import create_app
from svc_infra.config import Settings
from svc_infra.db.add import add_db
from svc_infra.security.add import add_auth_users

IN_FLIGHT = 50
BUDGET_MS = 50.0
FOLDER = "LOGIN_STORM_FOLDER"
CREDENTIALS = {"email": "ana@example.com", "password": "correct horse battery"}


def made() -> FastAPI:
    """A service with accounts, on a fresh SQLite file; every setting that costs is the default."""
    settings = Settings(
        app={"env": "test"},
        log={"level": "WARNING"},
        auth={"lockout_threshold": 10**6, "lockout_network_threshold": 10**6},
    )
    app = create_app(settings=settings)
    add_db(app, url=f"sqlite:///{os.environ[FOLDER]}/bench.db")
    add_auth_users(app)

    @app.get("/open")
    async def open_to_all() -> dict[str, str]:
        return {"hello": "world"}

    return app


async def _post(port: int, path: str) -> int:
    """Send the credentials; the status."""
    body = json.dumps(CREDENTIALS).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def _beside(port: int, work: Callable[[], Awaitable[Any]]) -> tuple[Any, list[int], float]:
    """What some work gives, and the statuses of the logins that were kept in flight beside it."""
    statuses: list[int] = []
    over = asyncio.Event()

    async def log_in() -> None:
        while not over.is_set():
            statuses.append(await _post(port, "/auth/login"))

    clients = [asyncio.create_task(log_in()) for _ in range(IN_FLIGHT)]
    started = time.perf_counter()
    result = await work()
    elapsed = time.perf_counter() - started
    done = len(statuses)
    over.set()
    await asyncio.gather(*clients)
    return result, statuses, done / elapsed


async def storm(seconds: float) -> list[dict[str, Any]]:
    """Load the plain route without and with logins in flight."""
    with ExitStack() as stack:
        os.environ[FOLDER] = stack.enter_context(tempfile.TemporaryDirectory())
        port, _ = stack.enter_context(served(Contender("bench.login_storm:made", factory=True)))
        if await _post(port, "/auth/register") != 201:
            raise SystemExit("the account could not be made")
        alone = await load(port, "/open", connections=1, seconds=seconds)
        beside, statuses, per_second = await _beside(port, lambda: load(port, "/open", connections=1, seconds=seconds))
    if set(statuses) - {200, 429} or alone.errors or beside.errors:
        raise SystemExit(f"unexpected answers: {set(statuses)}, {alone.errors}, {beside.errors}")
    return [
        {"GET": "alone", "p50 ms": alone.p50_ms, "p99 ms": alone.p99_ms, "logins/s": 0.0, "refused": 0},
        {
            "GET": f"beside {IN_FLIGHT} logins", "p50 ms": beside.p50_ms, "p99 ms": beside.p99_ms,
            "logins/s": per_second, "refused": statuses.count(429),
        },
    ]  # fmt: skip
