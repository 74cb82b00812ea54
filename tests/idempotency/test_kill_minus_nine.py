"""A server that is killed in the middle of requests, again and again, while its clients send them again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from svc_infra.db import AsyncDatabase
from svc_infra.db.sql import migrate
from tests.idempotency.shop import key

KEYS = 500
KILLS = 4
CLIENTS = 16
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "APP_ENV": "test",
    "IDEMPOTENCY_LEASE_SECONDS": "0.3",
    "LOG_LEVEL": "ERROR",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
IDENTITY = {"sqlite": "integer PRIMARY KEY", "postgresql": "integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}


class Clients:
    """Send every key twice, each until it is answered."""

    def __init__(self, port: int) -> None:
        limits = httpx2.Limits(max_connections=CLIENTS)
        url = f"http://127.0.0.1:{port}"
        self._http = httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False)
        self.broken = 0
        self.answers: dict[int, list[httpx2.Response]] = {number: [] for number in range(KEYS)}

    async def run(self) -> None:
        waiting = [number for number in self.answers for _ in range(2)]
        random.shuffle(waiting)

        async def one_client() -> None:
            while waiting:
                number = waiting.pop()
                self.answers[number].append(await self._answer(number))

        async with self._http, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(one_client())

    async def _answer(self, number: int) -> httpx2.Response:
        while True:
            try:
                answer = await self._http.post("/effects", json={"number": number}, headers=key(str(number)))
            except httpx2.TransportError:
                self.broken += 1
                continue
            if answer.status_code == 201:
                return answer
            assert answer.status_code == 409, answer.text
            await asyncio.sleep(0.02)


class Server:
    """A server on a socket that outlives it."""

    def __init__(self, db: AsyncDatabase, url: str) -> None:
        self._db = db
        self._url = url
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        descriptor = self.listener.fileno()
        command = [sys.executable, "-m", "tests.idempotency.effects_app", str(descriptor)]
        environment = {**ENVIRONMENT, "SQL_URL": self._url}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[descriptor])

    async def kill_at(self, effects: int) -> None:
        """Kill the server once so many effects have been committed."""
        assert self._process is not None
        async with asyncio.timeout(60):
            while await self.count("effects") < effects:
                assert self._process.poll() is None, f"the server ended by itself with {self._process.returncode}"
                await asyncio.sleep(random.uniform(0, 0.02))
        self.stop()

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL

    async def count(self, what: str) -> int:
        async with self._db.session(read_only=True) as session:
            return int((await session.execute(text(f"SELECT count(*) FROM {what}"))).scalar_one())


async def test_a_killed_server_never_has_two_effects_for_a_key(
    request: pytest.FixtureRequest, db: AsyncDatabase
) -> None:
    await migrate.upgrade(db)
    async with db.session() as session:
        await session.execute(text(f"CREATE TABLE effects (id {IDENTITY[db.dialect]}, number integer)"))
    server = Server(db, db.url.render_as_string(hide_password=False))
    points = sorted(random.sample(range(10, KEYS - 20), KILLS))
    in_progress = []
    with server.listener:
        server.start()
        clients = Clients(server.listener.getsockname()[1])
        sending = asyncio.create_task(clients.run())
        try:
            for point in points:
                await server.kill_at(point)
                in_progress.append(await server.count("svc_idempotency_keys WHERE status IS NULL"))
                server.start()
            await asyncio.wait_for(sending, 60)
        finally:
            sending.cancel()
            server.stop()
    async with db.session(read_only=True) as session:
        rows = (await session.execute(text("SELECT number, id FROM effects ORDER BY number"))).all()
    assert clients.broken, f"no request was interrupted at {points}: this shows nothing"
    assert any(in_progress), f"no key was held at {points}: this shows nothing"
    assert [number for number, _ in rows] == list(range(KEYS)), f"killed at {points}"
    for number, row in rows:
        one, other = clients.answers[number]
        assert one.json() == {"number": number, "row": row}, f"killed at {points}"
        assert one.content == other.content
    assert await server.count("svc_idempotency_keys WHERE status = 201") == KEYS
