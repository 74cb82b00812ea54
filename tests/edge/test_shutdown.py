"""Being told to stop: a real server, real signals, real clients."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from bench.restarts import roll

APP = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from fastapi import Request
from fastapi.responses import StreamingResponse
from svc_infra import create_app

room = {"open": False}

@asynccontextmanager
async def lifespan(app):
    room["open"] = True
    yield
    room["open"] = False
    Path("closed").touch()

app = create_app(name="stopping", lifespan=lifespan)

@app.get("/wait")
async def wait():
    Path("waiting").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return {"open": room["open"]}

@app.get("/endless")
async def endless(request: Request):
    async def parts():
        while True:
            yield "more"
            await asyncio.sleep(0.01)
    return StreamingResponse(parts())
"""


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def tell_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            while self.process.poll() is None:
                await asyncio.sleep(0.01)
        return int(self.process.returncode)

    async def is_accepting(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        except (ConnectionRefusedError, ConnectionResetError):  # the latter: closed while it was being accepted
            return False
        writer.close()
        return True


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[tuple[Running, httpx2.AsyncClient]]:
    """Serve the app in this folder until the block ends."""
    (folder / "stopping.py").write_text(APP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "stopping:app", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path]), "APP_ENV": "test", **settings}
    process = await asyncio.to_thread(subprocess.Popen, command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    server = Running(process, f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as client:
            while not await server.is_accepting():
                assert process.poll() is None
                await asyncio.sleep(0.01)
            yield server, client
    finally:
        process.kill()
        process.wait()


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(path.exists):
            await asyncio.sleep(0.01)


async def test_readiness_flips_at_once_while_everything_else_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, EDGE_DRAIN_DELAY_SECONDS="3600") as (server, client):
        before = await client.get("/_ops/ready")
        assert (before.status_code, "connection" in before.headers) == (200, False)
        server.tell_to_stop()
        while (ready := await client.get("/_ops/ready")).status_code == 200:
            await asyncio.sleep(0)
        assert (ready.status_code, ready.json()["phase"]) == (503, "draining")
        live = await client.get("/_ops/live")
        assert (live.status_code, live.headers["connection"]) == (200, "close")
        assert await server.is_accepting()
        server.tell_to_stop()  # the second time, it waits no longer
        assert await server.ended() == -signal.SIGTERM
    assert (tmp_path / "closed").exists()


async def test_a_request_in_flight_is_answered_before_the_rooms_close(tmp_path: Path) -> None:
    async with running(tmp_path) as (server, client):
        request = asyncio.create_task(client.get("/wait"))
        await until_exists(tmp_path / "waiting")
        server.tell_to_stop()
        while await server.is_accepting():
            await asyncio.sleep(0.01)
        assert not (tmp_path / "closed").exists()
        (tmp_path / "go").touch()
        answer = await request
        assert (answer.status_code, answer.json()) == (200, {"open": True})
        assert answer.headers["connection"] == "close"
        assert await server.ended() == -signal.SIGTERM
    assert (tmp_path / "closed").exists()


async def test_a_stream_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    async with running(tmp_path, APP_SHUTDOWN_GRACE_SECONDS="1") as (server, client):
        async with client.stream("GET", "/endless") as stream:
            parts = stream.aiter_bytes()
            assert (await anext(parts)).startswith(b"more")
            server.tell_to_stop()
            with pytest.raises(httpx2.RemoteProtocolError):
                async for _ in parts:
                    pass
        assert await server.ended() == -signal.SIGTERM
    assert (tmp_path / "closed").exists()


async def test_ten_rolling_restarts_under_load_fail_no_request() -> None:
    rolled = await roll(10)
    assert rolled.restarts == 10
    assert rolled.failures == []
    assert rolled.requests > 100
    assert len(rolled.last_seen) == 22  # every worker of every generation has answered
