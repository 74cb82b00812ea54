"""The tracker as a child process, started as its users start it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import httpx2

START_SECONDS = 60.0
STOP_SECONDS = 60.0


class Service:
    """`svc-infra demo` on a free port, with its log in a file.

    Args:
        folder: Where its SQLite file and its log lie.
        sql_url, redis_url: Other engines than the embedded ones.
    """

    def __init__(self, folder: Path, *, sql_url: str | None = None, redis_url: str | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        self._environment = {
            **os.environ,
            "APP_ENV": "test",
            "SQL_URL": sql_url or f"sqlite:///{folder}/tracker.db",
            "REDIS_URL": redis_url or "",
            "WEBHOOKS_RETRY_SCHEDULE_SECONDS": "0.1,0.2,0.3",
            "JOBS_LEASE_SECONDS": "5",
            "JOBS_DRAIN_SECONDS": "0.5",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "svc_infra.cli", "demo", "--no-seed", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=self._environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(START_SECONDS), httpx2.AsyncClient(base_url=self.url, trust_env=False) as client:
            while True:
                if self._process.returncode is not None:
                    raise AssertionError(f"the service stopped at start:\n{self.log.read_text()[-2000:]}")
                try:
                    if (await client.get("/_ops/ready")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def workplace() -> tempfile.TemporaryDirectory[str]:
    """A folder for one tour."""
    return tempfile.TemporaryDirectory(prefix="tour-")
